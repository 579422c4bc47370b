"""Which card is there, and can the installed torch use it? Asked of the driver (NVML) before anything heavy loads."""

import runpy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pynvml

from huiyin.common.errors import UserError

BF16_FROM = (8, 0)  # compute capability; earlier cards only emulate it, slowly, and torch calls that supported
# By the major version of the CUDA torch was built with: the first driver for it, and the oldest cards it still serves.
# CUDA release notes, tables of driver versions; CUDA 13 dropped Maxwell, Pascal and Volta.
OLDEST = {12: (525, (5, 0)), 13: (580, (7, 5))}


@dataclass(frozen=True)
class Card:
    """A card as the driver sees it: memory in bytes, `cuda` the newest CUDA its driver supports, as (major, minor)."""

    index: int
    name: str
    total: int
    free: int
    capability: tuple[int, int]
    driver: str
    cuda: tuple[int, int]
    flops: float  # single precision, per second, at the highest clock

    @property
    def precision(self):
        return "bf16" if self.capability >= BF16_FROM else "fp16"


def find_card(gpu):
    """Return the `Card` with the index `gpu` (text, in the order of the PCI bus)."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise UserError(
            f"GPU={gpu}, but no NVIDIA driver answers ({error}); say GPU=none to train on the processor"
        ) from None
    try:
        count = pynvml.nvmlDeviceGetCount()
        if not gpu.isdigit() or int(gpu) >= count:
            there = [f"{index} ({name_of(pynvml.nvmlDeviceGetHandleByIndex(index))})" for index in range(count)]
            raise UserError(
                f"GPU={gpu}, but the cards here are: {', '.join(there) or 'none'}; "
                "say GPU=none to train on the processor"
            )
        device = pynvml.nvmlDeviceGetHandleByIndex(int(gpu))
        memory = pynvml.nvmlDeviceGetMemoryInfo(device)
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        return Card(
            int(gpu),
            name_of(device),
            memory.total,
            memory.free,
            tuple(pynvml.nvmlDeviceGetCudaComputeCapability(device)),
            text(pynvml.nvmlSystemGetDriverVersion()),
            (cuda // 1000, cuda % 1000 // 10),
            speed_of(device),
        )
    finally:
        pynvml.nvmlShutdown()


def name_of(device):
    return text(pynvml.nvmlDeviceGetName(device))


def text(value):
    """NVML's older bindings return bytes."""
    return value.decode() if isinstance(value, bytes) else value


def speed_of(device):
    """Two operations a core and cycle. 0 where the driver does not say (WSL does not always)."""
    try:
        hertz = pynvml.nvmlDeviceGetMaxClockInfo(device, pynvml.NVML_CLOCK_SM) * 1e6
        return 2.0 * pynvml.nvmlDeviceGetNumGpuCores(device) * hertz
    except pynvml.NVMLError:
        return 0.0


def torch_cuda():
    """Return the CUDA version the installed torch was built with, None for a CPU build; torch itself is not loaded."""
    version = runpy.run_path(str(Path(find_spec("torch").origin).with_name("version.py")))
    return version["cuda"]


def check_card(card, built_with):
    """Raise `UserError` where the card, its driver and torch (built with CUDA `built_with`) do not go together."""
    if built_with is None:
        raise UserError(
            f"GPU={card.index} is a {card.name}, but the torch installed here is a CPU build; "
            "install one with CUDA into .venv, or say GPU=none"
        )
    major = int(built_with.split(".")[0])
    driver, oldest = OLDEST.get(major, OLDEST[max(OLDEST)])
    if card.cuda[0] < major:
        raise UserError(
            f"driver {card.driver} supports CUDA {dotted(card.cuda)}, this torch needs {built_with}: "
            f"update the driver to >= {driver}, or install a torch built for CUDA {card.cuda[0]}"
        )
    if card.capability < oldest:
        raise UserError(
            f"{card.name} (compute capability {dotted(card.capability)}) is too old for torch with CUDA "
            f"{built_with}, which serves {dotted(oldest)} and newer; install an older torch, or say GPU=none"
        )


def dotted(capability):
    return ".".join(map(str, capability))
