"""The card as the driver (NVML) reports it, and whether the installed torch can use it; torch is not imported."""

import runpy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huiyin.common.errors import UserError
from huiyin.common.lazy import lazy
from huiyin.training.memory import Precision

pynvml = lazy("pynvml")

BF16_FROM = (8, 0)  # compute capability; older cards emulate bf16 slowly, yet torch reports it as supported
# {major version of the CUDA of torch: (first driver for it, compute capability of the oldest cards it supports)}
# From the CUDA release notes, tables of driver versions; CUDA 13 dropped Maxwell, Pascal and Volta.
OLDEST = {12: (525, (5, 0)), 13: (580, (7, 5))}


@dataclass(frozen=True)
class Card:
    """A card as the driver reports it: memory in bytes; `cuda` (major, minor): the newest that it supports."""

    index: int
    name: str
    total: int
    free: int
    capability: tuple[int, int]
    driver: str
    cuda: tuple[int, int]
    flops: float  # single precision, per second, at the highest clock; 0: unknown

    @property
    def precision(self) -> Precision:
        return "bf16" if self.capability >= BF16_FROM else "fp16"


def find_card(gpu: str) -> Card:
    """Return the `Card` with the index `gpu` (text, in the order of the PCI bus); `UserError` if there is none."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise UserError(
            f"GPU={gpu}, but no NVIDIA driver answers ({error}); say GPU=none to train on the processor"
        ) from None
    try:
        count = pynvml.nvmlDeviceGetCount()
        if not gpu.isdigit() or int(gpu) >= count:
            devices = map(pynvml.nvmlDeviceGetHandleByIndex, range(count))
            cards = [f"{index} ({pynvml.nvmlDeviceGetName(device)})" for index, device in enumerate(devices)]
            here = ", ".join(cards) or "none"
            raise UserError(f"GPU={gpu}, but the cards here are: {here}; say GPU=none to train on the processor")
        device = pynvml.nvmlDeviceGetHandleByIndex(int(gpu))
        memory = pynvml.nvmlDeviceGetMemoryInfo(device)
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        name, driver = pynvml.nvmlDeviceGetName(device), pynvml.nvmlSystemGetDriverVersion()
        capability, cuda = tuple(pynvml.nvmlDeviceGetCudaComputeCapability(device)), (cuda // 1000, cuda % 1000 // 10)
        return Card(int(gpu), name, memory.total, memory.free, capability, driver, cuda, speed_of(device))
    finally:
        pynvml.nvmlShutdown()


def speed_of(device: Any) -> float:
    """Return operations per second, two per core and cycle; 0 if the driver does not tell (as WSL sometimes)."""
    try:
        hertz = pynvml.nvmlDeviceGetMaxClockInfo(device, pynvml.NVML_CLOCK_SM) * 1e6
        return 2.0 * pynvml.nvmlDeviceGetNumGpuCores(device) * hertz
    except pynvml.NVMLError:
        return 0.0


def torch_cuda() -> str | None:
    """Return the CUDA version that the installed torch was built with, None for a CPU build; torch is not imported."""
    spec = find_spec("torch")
    assert spec is not None and spec.origin is not None
    version = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    return version["cuda"]


def check_card(card: Card, built_with: str | None) -> None:
    """Raise `UserError` unless torch (built with CUDA `built_with`) can use the card with its driver."""
    if built_with is None:
        raise UserError(
            f"GPU={card.index} is a {card.name}, but the torch installed here is a CPU build; "
            "install one with CUDA into .venv, or say GPU=none"
        )
    major = int(built_with.split(".")[0])
    first_driver, oldest = OLDEST.get(major, OLDEST[max(OLDEST)])
    if card.cuda[0] < major:
        raise UserError(
            f"driver {card.driver} supports CUDA {dotted(card.cuda)}, this torch needs {built_with}: "
            f"update the driver to >= {first_driver}, or install a torch built for CUDA {card.cuda[0]}"
        )
    if card.capability < oldest:
        raise UserError(
            f"{card.name} (compute capability {dotted(card.capability)}) is too old for torch with CUDA "
            f"{built_with}, which supports {dotted(oldest)} and newer; install an older torch, or say GPU=none"
        )


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
