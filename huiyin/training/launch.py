"""llamafactory-cli, of whose processes none outlives the one that started it, and which computes fp32 in 32 bits.

    python launch.py train SETTINGS.yaml

For several cards it starts torchrun, and that the workers, each in a session of its own: after the end of the first the
others would go on beside our next run, on full cards. So Linux kills each when its parent ends.
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from huiyin.serving.process import end_with_parent


def load_in_32_bits() -> None:
    """Let LLaMA-Factory load base models in 32 bits: it takes the type of the file, most often bf16, in which it
    would then be computed: with few digits, and by a processor that does not know it a hundred times as slow."""
    import torch
    from llamafactory.model import loader

    load_config = loader.load_config

    def with_32_bits(*arguments: Any) -> Any:
        config = load_config(*arguments)
        config.dtype = torch.float32
        return config

    loader.load_config = with_32_bits


if __name__ == "__main__":
    end_with_parent()
    values = json.loads(Path(sys.argv[-1]).read_text(encoding="utf-8"))
    if not (values.get("bf16") or values.get("fp16")):
        load_in_32_bits()
    from llamafactory import launcher

    if "TORCHELASTIC_RUN_ID" in os.environ:  # a worker
        from llamafactory.train.tuner import run_exp

        run_exp()
    else:
        launcher.__file__ = __file__  # what torchrun is to start
        launcher.subprocess = SimpleNamespace(run=partial(subprocess.run, preexec_fn=end_with_parent))
        launcher.launch()
