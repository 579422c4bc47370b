"""Cards that are not there: NVML, simulated."""

from types import SimpleNamespace

import pynvml

from huiyin.training.memory import GIB

# name, total GiB, free GiB, capability, cores, MHz
RTX_3060 = ("NVIDIA GeForce RTX 3060", 12, 11.3, (8, 6), 3584, 2100)
RTX_2060 = ("NVIDIA GeForce RTX 2060", 6, 5.5, (7, 5), 1920, 2100)
RTX_4090 = ("NVIDIA GeForce RTX 4090", 24, 23, (8, 9), 16384, 2520)
T4 = ("Tesla T4", 15, 14.6, (7, 5), 2560, 1590)
P100 = ("Tesla P100-PCIE-16GB", 16, 15.8, (6, 0), 3584, 1328)
H100 = ("NVIDIA H100 80GB HBM3", 80, 79, (9, 0), 16896, 1980)
BUSY = ("NVIDIA GeForce RTX 3060", 12, 1.0, (8, 6), 3584, 2100)


def simulate_nvml(monkeypatch, *cards, driver="580.95.05", cuda=13000, error=None):
    """NVML with these cards, none before nvmlInit, which raises `error` as where there is no driver."""
    present = []

    def start():
        if error:
            raise pynvml.NVMLError(error)
        present.extend(cards)

    def memory(card):
        total, free = (int(size * GIB) for size in card[1:3])
        return SimpleNamespace(total=total, free=free, used=total - free)

    answers = {
        "nvmlInit": start,
        "nvmlShutdown": present.clear,
        "nvmlDeviceGetCount": lambda: len(present),
        "nvmlDeviceGetHandleByIndex": lambda index: present[index],
        "nvmlDeviceGetName": lambda card: card[0],
        "nvmlDeviceGetMemoryInfo": memory,
        "nvmlDeviceGetCudaComputeCapability": lambda card: card[3],
        "nvmlDeviceGetNumGpuCores": lambda card: card[4],
        "nvmlDeviceGetMaxClockInfo": lambda card, kind: card[5],
        "nvmlSystemGetDriverVersion": lambda: driver,
        "nvmlSystemGetCudaDriverVersion_v2": lambda: cuda,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
