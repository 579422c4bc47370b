"""The training and the export that are still to do: memory, time and disk, without a download."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huiyin.common.errors import UserError
from huiyin.forecast.stages import Forecast, Tried
from huiyin.llm.client import TOKENS_PER_CHARACTER
from huiyin.serving.ollama_limits import needs_gguf, room_for_export
from huiyin.serving.templates.chat_format import ChatFormat
from huiyin.serving.templates.known import find_format
from huiyin.training.card import Card
from huiyin.training.memory import GIB, PROGRAM_BYTES, Shape, find_ram, read_shape
from huiyin.training.models import largest_that_fit, read_models
from huiyin.training.plan import Plan, Settings, Work, installed
from huiyin.training.rows import MeasuredDataset, read_dataset
from huiyin.training.settings import Values
from huiyin.training.template import Encoding
from huiyin.training.work import disk_bytes, find_device, preflight, spare_tokens, trained_parameters, work_of

TRAIN_START, EXPORT_START = 30.0, 15.0  # seconds in which programs load, several times, on two cores
STEP = 0.1  # seconds of a step that its tokens do not decide; with tiny models most of them
DISK = 150e6  # bytes per second that are read, merged and written
CPU_FLOPS = 2e10  # per second, of the processor, where the losses of export are computed
COMPARED = 100  # rows whose losses export computes, those of the trained and of the merged model
MERGED_BYTES, ADAPTER_BYTES = 2, 4  # per parameter


class Guess(Encoding):
    """Numbers of tokens where the tokenizer of the base model is not there yet."""

    def __init__(self, chat_format: ChatFormat) -> None:
        self.format, self.control = chat_format, {}
        self.ids = lambda text: [0] * math.ceil(TOKENS_PER_CHARACTER * len(text))  # type: ignore[assignment]


@dataclass
class Base:
    """The base model as far as it is known before it is fetched."""

    name: str
    folder: Path | None  # None: not fetched
    shape: Shape | None  # None: neither fetched nor in models.yaml
    needs_gguf: bool = False  # for Ollama

    @property
    def bytes(self) -> float:
        return MERGED_BYTES * self.shape.parameters if self.shape else 0.0


@dataclass
class Training:
    """What is known of the training: `plan` is None where there is a `problem`, or where the model is not known."""

    base: Base
    work: Work | None = None
    plan: Plan | None = None
    problem: str = ""
    device: str = ""
    free: float = 0.0  # bytes of the device
    largest: str = ""  # model that fits


def find_known_base(name: str, cache: Path, models: Path) -> Base:
    """Return the base model `name`, a folder or one on the hub, of which nothing is fetched."""
    fetched = (cache / "huggingface" / f"models--{name.replace('/', '--')}" / "snapshots").glob("*")
    folders = [Path(name).expanduser(), *fetched]
    folder = next((folder for folder in folders if (folder / "config.json").is_file()), None)
    if folder:
        whole = folder if any(folder.glob("*.safetensors")) else None
        return Base(name, whole, read_shape(folder / "config.json"), needs_gguf(folder / "config.json"))
    known = read_models(models).get(name)
    return Base(name, None, known.shape, known.ollama == "gguf") if known else Base(name, None, None)


def measure(generated: Path, given: Values, base: Base) -> MeasuredDataset:
    chat_format = find_format(given["template"])
    encoding = Encoding(chat_format, base.folder) if base.folder else Guess(chat_format)
    return read_dataset(generated).measure(encoding, spare_tokens(given))


def find_training(
    generated: Path, given: Values, settings: Settings, base: Base, gpu: str, models: Path, probe: bool
) -> Training:
    """Return what is known of the training on the dataset in `generated`. probe: the processor may be measured."""
    training = Training(base)
    if base.shape is None:
        return training
    training.work = work_of(given, measure(generated, given, base).rows, base.shape)
    try:
        device, card = find_device(gpu)
        training.device, training.free = device["device"], device["free_gib"] * GIB
        if not card and not probe and not (settings.threads and settings.precision != "auto"):
            settings.threads, settings.precision = settings.threads or int(device["cores"]), "fp32"
        training.largest = largest(card, training.work, settings, given, models)
        training.plan = preflight(card, given, training.work, settings)
    except UserError as error:
        training.problem = str(error) + (f", such as {training.largest}" if training.largest else "")
    return training


def largest(card: Card | None, work: Work, settings: Settings, given: Values, models: Path) -> str:
    if card is None:
        return ""
    return largest_that_fit(
        read_models(models), card, work, settings, installed(), lambda shape: trained_parameters(given, shape)
    )


def forecast_train(training: Training, given: Values, rows: Tried, earlier: Mapping[str, Any]) -> Forecast:
    """Return the forecast of train, which reads the samples of the dataset that `rows` tells of."""
    read = rows.read - sum(rows.receipt["ledger"]["dropped"].values())
    work, plan = training.work, training.plan
    if work is None or plan is None:
        return Forecast("train", read, read, None, 0.0)
    tokens = plan.padding * sum(work.learnt(plan.cutoff_len).lengths) * rows.scale * given["num_train_epochs"]
    results = earlier.get("results", {})
    if earlier.get("base_model", {}).get("name") == training.base.name and results.get("num_input_tokens_seen"):
        starting = max(0.0, earlier["seconds"] - results["train_runtime"])
        seconds = starting + tokens * results["train_runtime"] / results["num_input_tokens_seen"]
    else:
        steps = plan.steps * given["num_train_epochs"] * rows.scale
        seconds = TRAIN_START + STEP * steps + 3600 * plan.hours * rows.scale
    too_long = round(rows.scale * plan.too_long)
    stay = ADAPTER_BYTES * work.lora
    passing = disk_bytes(given, work, rows.bytes)
    return Forecast("train", read, read - too_long, (seconds, seconds), stay, passing)


def forecast_export(training: Training, gguf: bool, same_disk: bool, earlier: Mapping[str, Any]) -> Forecast:
    """Return the forecast of export, which has no rows. gguf: a GGUF file is wanted; same_disk: Ollama's store is on
    the disk of the results. It stays with 16 bits a weight, but export asks for the room of 32."""
    base, work = training.base, training.work
    if base.shape is None or work is None:
        return Forecast("export", 0, 0, None, 0.0)
    tokens = COMPARED * sum(work.lengths) / max(1, len(work.lengths))
    seconds = EXPORT_START + 6 * base.bytes / DISK + 2 * base.shape.parameters * tokens / CPU_FLOPS
    if earlier.get("base_model", {}).get("name") == base.name:
        seconds = earlier["seconds"]
    written = gguf or base.needs_gguf
    stay = (1 + written) * base.bytes
    room = room_for_export(2 * base.bytes, written, same_disk)
    return Forecast("export", 0, 0, (seconds, seconds), stay, room - stay)


def ram_for_export(shape: Shape) -> tuple[float, float]:
    """Return the bytes of memory that export needs at least, the weights as they are stored, and those that are free
    with swap."""
    ram = find_ram()
    return MERGED_BYTES * shape.parameters + PROGRAM_BYTES, ram.free + ram.swap
