"""llamafactory-cli, of whose processes none outlives the one that started it.

    python launch.py train SETTINGS.yaml

For several cards it starts torchrun, and that the workers, each in a session of its own: after the end of the first the
others would go on beside our next run, on full cards. So Linux kills each when its parent ends.
"""

import os
import subprocess
from functools import partial
from types import SimpleNamespace

from huiyin.serving.process import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    from llamafactory import launcher

    if "TORCHELASTIC_RUN_ID" in os.environ:  # a worker
        from llamafactory.train.tuner import run_exp

        run_exp()
    else:
        launcher.__file__ = __file__  # what torchrun is to start
        launcher.subprocess = SimpleNamespace(run=partial(subprocess.run, preexec_fn=end_with_parent))
        launcher.launch()
