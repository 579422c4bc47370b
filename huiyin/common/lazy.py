"""Packages that load when they are first used: `--help` and a wrong argument answer at once, polars takes 0.3 s.

from huiyin.common.lazy import polars as pl
"""

import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING


def lazy(name: str) -> ModuleType:
    """Return the package `name`, to be loaded when an attribute is first used (in the main thread)."""
    if name not in sys.modules:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        spec.loader = importlib.util.LazyLoader(spec.loader)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


if TYPE_CHECKING:
    import polars
    import requests
else:
    polars = lazy("polars")
    requests = lazy("requests")

__all__ = ["polars", "requests"]
