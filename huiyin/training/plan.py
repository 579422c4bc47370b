"""What fits the card: precision, rows at a time, checkpointing, and concessions in a fixed order."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar, Literal

from huiyin.common.errors import UserError
from huiyin.common.settings import AtLeast1
from huiyin.training.memory import GIB, peak_bytes

MICRO_BATCHES = [8, 4, 2, 1]
SHORTER = [768, 512, 384, 256]  # lengths to fall back to, in tokens
PADDED_TO = 8
LIGER, FOUR_BIT = "liger_kernel", "bitsandbytes"  # packages that make a concession possible
FLOPS_PER_TOKEN = 6  # a parameter: forward, backward through frozen weights, and forward again for checkpointing
EFFICIENCY = 0.8  # of the single-precision peak; tensor cores make up for what is lost elsewhere
CPU_FLOPS = 2e10  # a core; only for a rough figure


@dataclass
class Settings:
    """config/preflight.yaml; what is empty is chosen."""

    precision: Literal["auto", "bf16", "fp16"] = "auto"
    micro_batch: AtLeast1 | None = None
    gradient_checkpointing: bool | None = None
    liger: bool | None = None
    four_bit: bool | None = None
    cutoff_len: AtLeast1 | None = None
    reserve_gib: float = 0.6
    usable_share: float = 0.9

    PRESETS: ClassVar = {"default": {}}


@dataclass(frozen=True)
class Plan:
    precision: str
    micro_batch: int
    accumulation: int
    checkpointing: bool
    liger: bool
    four_bit: bool
    cutoff_len: int
    rows_cut: int
    peak: float  # bytes
    hours: float

    def values(self):
        """The plan in LLaMA-Factory's words."""
        given = {
            "per_device_train_batch_size": self.micro_batch,
            "per_device_eval_batch_size": self.micro_batch,
            "gradient_accumulation_steps": self.accumulation,
            "cutoff_len": self.cutoff_len,
            "disable_gradient_checkpointing": not self.checkpointing,
            "bf16": self.precision == "bf16",
            "fp16": self.precision == "fp16",
        }
        if self.liger:
            given["enable_liger_kernel"] = True
        if self.four_bit:
            given["quantization_bit"] = 4
        return given


@dataclass(frozen=True)
class Work:
    """What there is to train: `lengths` of the rows in tokens, `batch` rows before each step, trained parameters."""

    shape: object
    lengths: list[int]
    lora: int
    batch: int
    cutoff_len: int
    epochs: float

    def tokens_of(self, micro_batch, cutoff_len):
        """Tokens of the worst micro-batch: all rows as long as the longest, padded."""
        longest = min(max(self.lengths), cutoff_len)
        return micro_batch * -(-longest // PADDED_TO) * PADDED_TO

    def rows_cut(self, cutoff_len):
        return sum(length > cutoff_len for length in self.lengths)

    def hours(self, flops, cutoff_len):
        tokens = sum(min(length, cutoff_len) for length in self.lengths) * self.epochs
        return FLOPS_PER_TOKEN * self.shape.parameters * tokens / flops / 3600 if flops else float("nan")


def installed():
    """Which of the optional helpers are there: {package: bool}."""
    return {package: find_spec(package) is not None for package in (LIGER, FOUR_BIT)}


def plan_for_card(card, work, settings, helpers):
    """Return the `Plan` for `card`: the largest micro-batch that fits, with the first concession that lets one fit."""
    budget = (card.free - settings.reserve_gib * GIB) * settings.usable_share
    precision = card.precision if settings.precision == "auto" else settings.precision
    # without checkpointing a step is about a quarter faster, so it is left out where it can be
    wanted = settings.gradient_checkpointing
    for four_bit, cutoff_len, liger in concessions(work, settings, helpers):
        for micro_batch in micro_batches(work, settings):
            tokens = work.tokens_of(micro_batch, cutoff_len)
            for checkpointing in [False, True] if wanted is None else [wanted]:
                peak = peak_bytes(work.shape, tokens, work.lora, checkpointing, liger, four_bit)
                if peak <= budget:
                    return Plan(
                        precision,
                        micro_batch,
                        work.batch // micro_batch,
                        checkpointing,
                        liger,
                        four_bit,
                        cutoff_len,
                        work.rows_cut(cutoff_len),
                        peak,
                        work.hours(EFFICIENCY * card.flops, cutoff_len),
                    )
    absent = [name for name, there in helpers.items() if not there]
    more = f" ({' and '.join(absent)} would allow more, but cannot be imported)" if absent else ""
    raise UserError(
        f"{card.name} has {card.free / GIB:.1f} GiB free of {card.total / GIB:.1f}, too little for this "
        f"model even with every concession{more}; "
        "close what uses the card, or take a smaller model in train.yaml"
    )


def concessions(work, settings, helpers):
    """Yield (four_bit, cutoff_len, liger), dearest last: Liger loses nothing, shorter rows text, 4 bits quality."""
    full = settings.cutoff_len or work.cutoff_len
    shorter = [] if settings.cutoff_len else [length for length in SHORTER if length < full]
    may_liger = choices(settings.liger, helpers[LIGER])
    for four_bit in choices(settings.four_bit, helpers[FOUR_BIT]):
        for liger in may_liger:
            yield four_bit, full, liger
        for cutoff_len in shorter:
            yield four_bit, cutoff_len, may_liger[-1]


def choices(setting, installed):
    """What may be tried, the cheaper first: what the setting says, else without and, where it is installed, with."""
    if setting is not None:
        return [setting]
    return [False, True] if installed else [False]


def micro_batches(work, settings):
    """Return the numbers of rows at a time to try; each keeps the wanted rows a step."""
    if settings.micro_batch is None:
        return [size for size in MICRO_BATCHES if work.batch % size == 0]
    if work.batch % settings.micro_batch:
        raise UserError(
            f"preflight.yaml: micro_batch {settings.micro_batch} does not divide the {work.batch} rows a "
            "step of train.yaml (per_device_train_batch_size x gradient_accumulation_steps)"
        )
    return [settings.micro_batch]


def plan_for_processor(free_bytes, cores, work, micro_batch, settings):
    """Return the `Plan` for training without a card, in full precision; `free_bytes` of memory must do."""
    micro_batch, cutoff_len = settings.micro_batch or micro_batch, settings.cutoff_len or work.cutoff_len
    checkpointing = settings.gradient_checkpointing is not False
    peak = peak_bytes(work.shape, work.tokens_of(micro_batch, cutoff_len), work.lora, checkpointing)
    if peak > free_bytes:
        raise UserError(
            f"training takes about {peak / GIB:.1f} GiB of memory and {free_bytes / GIB:.1f} are free; "
            "take a smaller model or fewer rows at a time in train.yaml"
        )
    return Plan(
        "fp32",
        micro_batch,
        work.batch // micro_batch,
        checkpointing,
        False,
        False,
        cutoff_len,
        work.rows_cut(cutoff_len),
        peak,
        work.hours(CPU_FLOPS * cores, cutoff_len),
    )
