"""Choose settings that fit the card: precision, micro-batch, checkpointing, and concessions in a fixed order."""

import math
import shutil
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from msgspec import Meta

from huiyin.common.errors import UserError
from huiyin.common.settings import AtLeast1, From1To1000
from huiyin.training.card import Card
from huiyin.training.memory import GIB, Precision, Shape, peak_bytes, ram_bytes
from huiyin.training.order import computed, padded, together
from huiyin.training.processor import Processor
from huiyin.training.rows import Measured

MICRO_BATCHES = [8, 4, 2, 1]
NEAR = 1 / 5  # of the replies per step: so far a larger micro-batch may miss them
SHORTER = [768, 512, 384, 256]  # tokens of a row, if cutoff_len does not fit
SHORT = 512  # rows are cut below it only if a base model in 4 bits does not help
LIGER, FOUR_BIT = "liger_kernel", "bitsandbytes"  # packages that save memory
FLOPS_PER_TOKEN = 6  # per parameter: forward, backward through frozen weights, and forward again for checkpointing
EFFICIENCY = 0.8  # share of the single-precision peak; tensor cores make up for other losses
CPU_FLOPS = 2e10  # per thread, a rough estimate where nothing was measured

Concession = tuple[bool, int]  # four_bit, cutoff_len


@dataclass
class Settings:
    """config/preflight.yaml; None: chosen by the plan."""

    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    threads: From1To1000 | None = None
    micro_batch: From1To1000 | None = None
    gradient_checkpointing: bool | None = None
    liger: bool | None = None
    four_bit: bool | None = None
    cutoff_len: AtLeast1 | None = None
    reserve_gib: Annotated[float, Meta(ge=0, le=1000)] = 0.6
    usable_share: Annotated[float, Meta(gt=0, le=1)] = 0.9
    accept_base: bool = False

    WITHOUT_EFFECT: ClassVar[set[str]] = {"accept_base"}


@dataclass(frozen=True)
class Plan:
    precision: Precision
    micro_batch: int  # rows
    accumulation: int  # micro-batches per step, of all processes together
    checkpointing: bool
    liger: bool
    four_bit: bool
    cutoff_len: int
    rows_cut: int  # rows that are longer
    too_long: int  # replies that are longer alone, with their prompt and the system text
    replies: float  # per step, on average
    steps: int  # per epoch
    together: int  # rows of like length; a smaller micro-batch after an out-of-memory error divides them
    padding: float  # tokens that are computed, per token of the rows
    padding_shuffled: float  # the same if rows of any length stood together
    peak: float  # bytes
    hours: float
    threads: int | None = None  # of the processor; None: the training runs on a card

    @property
    def rows(self) -> int:
        """The rows per step."""
        return self.micro_batch * self.accumulation

    def smaller(self) -> "Plan":
        """Return the plan with a smaller micro-batch, of half the rows if possible, and as many rows per step."""
        size = max(size for size in range(1, self.micro_batch) if self.micro_batch % size == 0)
        return replace(self, micro_batch=size, accumulation=self.rows // size)

    def values(self) -> dict[str, Any]:
        """Return the plan as settings of LLaMA-Factory."""
        values = {
            "per_device_train_batch_size": self.micro_batch,
            "per_device_eval_batch_size": self.micro_batch,
            "gradient_accumulation_steps": self.accumulation,
            "cutoff_len": self.cutoff_len,
            "disable_gradient_checkpointing": not self.checkpointing,
            "bf16": self.precision == "bf16",
            "fp16": self.precision == "fp16",
        }
        if self.liger:
            values["enable_liger_kernel"] = True
        if self.four_bit:
            values["quantization_bit"] = 4
        return values


class Step(NamedTuple):
    """What a step of one process is made of."""

    micro_batch: int  # rows
    accumulation: int  # micro-batches

    @property
    def rows(self) -> int:
        return self.micro_batch * self.accumulation


@dataclass(frozen=True)
class Work:
    """The training that the dataset and train.yaml ask for."""

    shape: Shape
    rows: list[Measured]
    lora: int  # trained parameters
    batch: int  # replies per step
    cutoff_len: int
    epochs: float
    processes: int = 1
    only_last: bool = False  # of the replies of a row is learnt
    packed: bool = False  # LLaMA-Factory fills rows of cutoff_len tokens with those of the dataset

    @cached_property
    def lengths(self) -> list[int]:
        """The tokens of the rows."""
        return [row.tokens() for row in self.rows]

    @cached_property
    def alone(self) -> list[int]:
        """The tokens of rows with a single reply each."""
        return [length for row in self.rows for length in row.alone()]

    def learnt(self, cutoff_len: int) -> "Learnt":
        """Return what there is to learn from if the rows are fitted into `cutoff_len`."""
        parts = [(row, *part) for row in self.rows for part in row.learnt(cutoff_len)]
        replies = len(parts) if self.only_last else sum(stop - start for _, start, stop in parts)
        lengths = [row.tokens(start, stop) for row, start, stop in parts]
        if self.packed:
            lengths = [cutoff_len] * math.ceil(sum(lengths) / cutoff_len)
        return Learnt(lengths, replies)

    def tokens_of(self, micro_batch: int, cutoff_len: int) -> int:
        """Return the tokens of the largest micro-batch: every row as long as the longest, padded."""
        longest = cutoff_len if self.packed else min(max(self.lengths), cutoff_len)
        return micro_batch * padded(longest)

    def steps(self, learnt: "Learnt", fixed: int | None) -> list[Step]:
        """Return the steps to try, those with the largest micro-batch first. `fixed`: the micro-batch, if it is.

        A step has about `batch` replies, and no micro-batch more rows than that needs. Rows of one reply each are
        counted exactly; where they have several, a step is a few rows, and a micro-batch of one row would be slow.
        """
        rows = self.batch / learnt.mean_replies / self.processes
        nearest = max(1, round(rows))
        missed = max(abs(nearest - rows), NEAR * rows if learnt.mean_replies > 1 else 0)
        sizes = [min(fixed, nearest)] if fixed else [size for size in MICRO_BATCHES if size <= nearest]
        steps = [Step(size, max(1, round(rows / size))) for size in sizes]
        return steps if fixed else [step for step in steps if abs(step.rows - rows) <= missed]

    def plan(
        self,
        precision: Precision,
        step: Step,
        checkpointing: bool,
        liger: bool,
        concession: Concession,
        peak: float,
        flops: float,
        threads: int | None = None,
    ) -> Plan:
        """Return the `Plan` with these choices; flops: of the device per second, 0 for unknown."""
        four_bit, cutoff_len = concession
        learnt = self.learnt(cutoff_len)
        rows_cut, too_long = (sum(length > cutoff_len for length in part) for part in (self.lengths, self.alone))
        padding_shuffled, padding = learnt.padding(step.micro_batch)
        tokens = padding * sum(learnt.lengths) * self.epochs
        hours = FLOPS_PER_TOKEN * self.shape.parameters * tokens / flops / 3600 if flops else float("nan")
        rows = step.rows * self.processes
        return Plan(
            *(precision, step.micro_batch, step.accumulation * self.processes, checkpointing, liger, four_bit),
            *(cutoff_len, rows_cut, too_long, rows * learnt.mean_replies, math.ceil(len(learnt.lengths) / rows)),
            *(step.micro_batch, padding, padding_shuffled),
            *(peak, hours, threads),
        )


@dataclass(frozen=True)
class Learnt:
    """The rows that are learnt."""

    lengths: list[int]  # tokens
    replies: int  # that are learnt of all of them

    @property
    def mean_replies(self) -> float:
        """The replies per row; 1 if there is no row."""
        return self.replies / len(self.lengths) if self.lengths else 1.0

    def padding(self, micro_batch: int) -> tuple[float, float]:
        """Return the tokens that are computed in an epoch, per token of the rows: shuffled, and then ordered."""
        shuffled = Random(0).sample(range(len(self.lengths)), len(self.lengths))  # as good as that of any epoch
        orders = shuffled, together(shuffled, self.lengths, micro_batch)
        before, after = (computed(order, self.lengths, micro_batch) / max(1, sum(self.lengths)) for order in orders)
        return before, after


def installed() -> dict[str, bool]:
    """Return {optional package: whether it works here}. Liger's kernels are compiled by Triton as the training starts
    (triton/runtime/build.py): that takes a C compiler and the headers of Python."""
    headers = Path(sysconfig.get_path("include"), "Python.h")
    compiles = bool(shutil.which("gcc") or shutil.which("clang")) and headers.is_file()
    return {LIGER: find_spec(LIGER) is not None and compiles, FOUR_BIT: find_spec(FOUR_BIT) is not None}


def plan_for_card(card: Card, work: Work, settings: Settings, helpers: Mapping[str, bool]) -> Plan:
    """Return the `Plan` for `card`: the first concession with which a micro-batch fits, and the largest that does;
    `UserError` if nothing fits. Liger loses nothing, so it is used wherever it works. helpers: `installed()`."""
    precision, liger = precision_on(card, settings), uses_liger(settings, helpers)
    for concession in concessions(work, settings, helpers):
        four_bit, cutoff_len = concession
        for step in work.steps(work.learnt(cutoff_len), settings.micro_batch):
            tokens = work.tokens_of(step.micro_batch, cutoff_len)
            for checkpointing in choices(settings.gradient_checkpointing, True):  # a quarter faster without
                peak = peak_bytes(work.shape, tokens, work.lora, precision, checkpointing, liger, four_bit)
                if peak <= usable_bytes(card, settings):
                    flops = EFFICIENCY * card.flops
                    return work.plan(precision, step, checkpointing, liger, concession, peak, flops)
    missing = [name for name, present in helpers.items() if not present]
    hint = f" ({' and '.join(missing)} would help, but cannot be used here)" if missing else ""
    raise UserError(
        f"{card.name} has {card.free / GIB:.1f} GiB free of {card.total / GIB:.1f}, too little for this model even "
        f"with every concession{hint}; close what uses the card, or take a smaller model in train.yaml"
    )


def usable_bytes(card: Card, settings: Settings) -> float:
    return (card.free - settings.reserve_gib * GIB) * settings.usable_share


def precision_on(card: Card, settings: Settings) -> Precision:
    return card.precision if settings.precision == "auto" else settings.precision


def uses_liger(settings: Settings, helpers: Mapping[str, bool]) -> bool:
    return helpers[LIGER] if settings.liger is None else settings.liger


def concessions(work: Work, settings: Settings, helpers: Mapping[str, bool]) -> Iterator[Concession]:
    """Yield what to try, the least costly first: shorter rows lose history and long replies, 4 bits some quality, and
    very short rows more than that."""
    full = settings.cutoff_len or work.cutoff_len
    shorter = [] if settings.cutoff_len else [length for length in SHORTER if min(work.alone) <= length < full]
    four_bits = choices(settings.four_bit, helpers[FOUR_BIT])
    for four_bit in four_bits:
        yield from ((four_bit, length) for length in [full, *shorter] if length == full or length >= SHORT)
    yield from ((four_bits[-1], length) for length in shorter if length < SHORT)


def choices(setting: bool | None, possible: bool) -> list[bool]:
    """Return what to try: the setting, or if it is empty False and then, if `possible`, True."""
    if setting is not None:
        return [setting]
    return [False, True] if possible else [False]


def plan_for_processor(free_bytes: int, processor: Processor, work: Work, micro_batch: int, settings: Settings) -> Plan:
    """Return the `Plan` for training without a card; `UserError` if it exceeds `free_bytes`."""
    cutoff_len = settings.cutoff_len or work.cutoff_len
    [step] = work.steps(work.learnt(cutoff_len), settings.micro_batch or micro_batch)
    checkpointing = settings.gradient_checkpointing is not False
    tokens = work.tokens_of(step.micro_batch, cutoff_len)
    peak = ram_bytes(work.shape, tokens, work.lora, processor.precision, checkpointing)
    if peak > free_bytes:
        raise UserError(
            f"training takes about {peak / GIB:.1f} GiB of memory and {free_bytes / GIB:.1f} are free; "
            "take a smaller model or a smaller micro-batch in train.yaml"
        )
    flops, threads = EFFICIENCY * processor.flops or CPU_FLOPS * processor.threads, processor.threads
    return work.plan(processor.precision, step, checkpointing, False, (False, cutoff_len), peak, flops, threads)
