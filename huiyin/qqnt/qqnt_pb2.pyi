# The classes are made from qqnt.proto when the module loads; their fields are described there.
from typing import Any

def __getattr__(name: str) -> Any: ...
