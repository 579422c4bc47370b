"""Stands in for torchaudio, which LLaMA-Factory imports although only audio inputs use it."""


def __getattr__(name):
    raise AttributeError(f"torchaudio is a stand-in here and has no {name}")
