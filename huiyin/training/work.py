"""The training that the settings ask for, the device that there is, and the plan that fits them."""

import os
from typing import Any

from huiyin.training.card import Card, check_card, dotted, find_card, torch_cuda
from huiyin.training.llamafactory import world_size
from huiyin.training.memory import GIB, LORA_BYTES, Shape, find_ram
from huiyin.training.plan import Plan, Settings, Work, installed, plan_for_card, plan_for_processor
from huiyin.training.processor import find_processor
from huiyin.training.rows import Measured
from huiyin.training.settings import Values


def spare_tokens(given: Values) -> int:
    """Return how many tokens of cutoff_len LLaMA-Factory leaves empty: with packing the last one."""
    return int(bool(given.get("packing") or given.get("neat_packing")))


def names_in(setting: str) -> list[str]:
    return setting.replace(" ", "").split(",")


def trained_parameters(given: Values, shape: Shape) -> int:
    """Return the number of parameters of the adapters, and of the embeddings that are trained as a whole."""
    whole = {"embed_tokens", "lm_head"} & set(names_in(given.get("additional_target") or ""))
    lora = shape.lora_parameters(given["lora_rank"], names_in(given["lora_target"]))
    return lora + len(whole) * shape.vocabulary * shape.hidden


def work_of(given: Values, rows: list[Measured], shape: Shape) -> Work:
    return Work(
        shape,
        rows,
        lora=trained_parameters(given, shape),
        batch=given["per_device_train_batch_size"] * given["gradient_accumulation_steps"],
        cutoff_len=given["cutoff_len"],
        epochs=given["num_train_epochs"],
        processes=world_size(),
        only_last=bool(given.get("mask_history")),
        packed=bool(spare_tokens(given)),
    )


def disk_bytes(given: Values, work: Work, dataset: float) -> float:
    """Return an upper estimate of the bytes that checkpoints and the prepared rows need, of a dataset of `dataset`
    bytes."""
    return (given["save_total_limit"] + 1) * LORA_BYTES * work.lora + 20 * dataset


def find_device(gpu: str) -> tuple[dict[str, Any], Card | None]:
    """Return (the device, for the receipt; the card, of several the one with the least free memory, None for the
    processor); `UserError` if a card cannot be used."""
    if gpu == "none":
        ram = find_ram()
        sizes = {"total_gib": gib(ram.total), "free_gib": gib(ram.free)}
        return {"device": "processor", "cores": os.cpu_count() or 1, **sizes}, None
    cards = [find_card(index) for index in gpu.split(",")]
    built_with = torch_cuda()
    for card in cards:
        check_card(card, built_with)
    card = min(cards, key=lambda card: card.free)  # what fits on this one fits on the others
    device = {
        **{"device": card.name, "cards": len(cards), "total_gib": gib(card.total), "free_gib": gib(card.free)},
        **{"capability": dotted(card.capability), "driver": card.driver},
        **{"driver_cuda": dotted(card.cuda), "torch_cuda": built_with},
    }
    return device, card


def gib(size: int) -> float:
    return round(size / GIB, 1)


def preflight(card: Card | None, given: Values, work: Work, settings: Settings) -> Plan:
    """Return the `Plan` for the memory that is free now; `UserError` if the training does not fit."""
    if card:
        return plan_for_card(card, work, settings, installed())
    micro_batch = given["per_device_train_batch_size"]
    processor = find_processor(settings.precision, settings.threads)
    return plan_for_processor(find_ram().free, processor, work, micro_batch, settings)
