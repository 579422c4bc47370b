"""config/chat.yaml: how one talks to the finished model, in the terminal or in the browser."""

from dataclasses import dataclass

from huiyin.common.settings import UpTo1000


@dataclass
class Settings:
    exchanges: UpTo1000 = 3
    split: bool = True
