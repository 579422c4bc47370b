"""config/models.yaml: base models that are known, their licences and their sizes, and which of them fit a card."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import msgspec

from huiyin.common.errors import UserError
from huiyin.common.settings import read_mapping
from huiyin.training.card import Card
from huiyin.training.memory import ARCHITECTURES, Shape, peak_bytes, shape_of
from huiyin.training.plan import FOUR_BIT, Settings, Work, choices, precision_on, usable_bytes, uses_liger


@dataclass(frozen=True)
class Sizes:
    """What config.json says of a model, under the same names; None: it leaves this out."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    head_dim: int | None = None
    tie_word_embeddings: bool | None = None


@dataclass(frozen=True)
class Memory:
    """GiB at the peak of a training; models.yaml says of which."""

    plain: float
    liger: float
    four_bit: float


@dataclass(frozen=True)
class Model:
    """A model of the table."""

    licence: str
    template: str
    architecture: str
    parameters: int
    ollama: Literal["safetensors", "gguf"]
    thinking: Literal["none", "hybrid"]
    restricted: str = ""  # what the licence forbids or asks for
    sizes: Sizes | None = None  # None: not known for certain, and so is its memory
    memory: Memory | None = None

    @property
    def terms(self) -> str:
        """The licence, in words."""
        return f"{self.licence}: {self.restricted}" if self.restricted else self.licence

    @property
    def shape(self) -> Shape | None:
        if self.sizes is None:
            return None
        given = {name: value for name, value in asdict(self.sizes).items() if value is not None}
        return shape_of(ARCHITECTURES[self.architecture], given)


def read_models(path: Path) -> dict[str, Model]:
    """Return {name: model} of the table at `path`."""
    try:
        models = msgspec.convert(read_mapping(path), dict[str, Model], strict=False)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {error}") from None
    for name, model in models.items():
        if model.architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise UserError(f"{path}: {name}: unsupported architecture {model.architecture}; known are: {known}")
    return models


def largest_that_fit(
    models: Mapping[str, Model],
    card: Card,
    work: Work,
    settings: Settings,
    helpers: Mapping[str, bool],
    lora: Callable[[Shape], int],
) -> str:
    """Return the name of the largest model with which the rows of `work` fit the card as they are, and if in 4 bits a
    larger one does, that too; "" if none does. lora: the number of trained parameters for a shape."""
    tokens = work.tokens_of(settings.micro_batch or 1, settings.cutoff_len or work.cutoff_len)
    checkpointing, liger = settings.gradient_checkpointing is not False, uses_liger(settings, helpers)
    shapes = {name: shape for name, model in models.items() if (shape := model.shape)}
    named: dict[str, str] = {}
    for four_bit in choices(settings.four_bit, helpers[FOUR_BIT]):
        choice = precision_on(card, settings), checkpointing, liger, four_bit
        peaks = {name: peak_bytes(shape, tokens, lora(shape), *choice) for name, shape in shapes.items()}
        fitting = [name for name, peak in peaks.items() if peak <= usable_bytes(card, settings)]
        if fitting:
            name = max(fitting, key=lambda name: models[name].parameters)
            named.setdefault(name, f"{'in 4 bits ' if four_bit else ''}{name} ({models[name].terms})")
    return ", ".join(named.values())
