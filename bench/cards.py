"""What preflight chooses for each model of config/models.yaml on cards of several sizes.

    PYTHONPATH=. python bench/cards.py

The cards are of compute capability 8.6 (bf16) with `FREE` of their memory free; that of 6 GiB is of 7.5 (fp16). The
settings are those in config/; Liger and 4 bits are installed. Of 512 rows the longest has more than 1,024 tokens. For
each card a table: precision, rows of a micro-batch x micro-batches, checkpointing, whether the base model is in 4 bits,
tokens to which rows are cut, and the predicted peak; and the largest models that fit.
"""

from pathlib import Path

from huiyin.common.errors import UserError
from huiyin.training.card import Card
from huiyin.training.memory import GIB
from huiyin.training.models import largest_that_fit, read_models
from huiyin.training.plan import FOUR_BIT, LIGER, Settings, Work, plan_for_card
from huiyin.training.rows import Measured
from huiyin.training.settings import read_train_settings

CONFIG = Path(__file__).parent.parent / "config"
SIZES, FREE = [6, 8, 12, 16, 24], 0.94
HELPERS = {LIGER: True, FOUR_BIT: True}
LENGTHS = [40 + 1100 * number**3 // 511**3 for number in range(512)]  # most are short


def card_of(size: int) -> Card:
    capability = (7, 5) if size == 6 else (8, 6)
    return Card(0, f"{size} GiB", size * GIB, int(FREE * size * GIB), capability, "580.95.05", (13, 0), 1.5e13)


def described(card: Card, work: Work) -> str:
    """Return the cells of the plan for `card`."""
    try:
        plan = plan_for_card(card, work, Settings(), HELPERS)
    except UserError:
        return "does not fit | | | | |"
    used = ["yes" if choice else "no" for choice in (plan.checkpointing, plan.four_bit)]
    step = f"{plan.micro_batch} x {plan.accumulation}"
    return f"{plan.precision}, {step} | {' | '.join(used)} | {plan.cutoff_len:,} | {plan.peak / GIB:.1f} |"


def main() -> None:
    models, given = read_models(CONFIG / "models.yaml"), read_train_settings(CONFIG / "train.yaml")
    rank, cutoff_len = given["lora_rank"], given["cutoff_len"]
    rows = [Measured("", [("", "")], [length], [length], 0) for length in LENGTHS]
    for card in map(card_of, SIZES):
        print(f"{card.name}, of which {card.free / GIB:.1f} are free\n")
        print("| model | step | checkpointing | 4 bits | tokens of a row | peak, GiB |\n|---|---|---|---|---|---|")
        for name, model in models.items():
            if shape := model.shape:
                work = Work(
                    shape, rows, shape.lora_parameters(rank, ["all"]), 16, cutoff_len, given["num_train_epochs"]
                )
                print(f"| {name} | {described(card, work)}", flush=True)
        largest = largest_that_fit(
            models, card, work, Settings(), HELPERS, lambda shape: shape.lora_parameters(rank, ["all"])
        )
        print(f"\nThe largest: {largest}\n", flush=True)


if __name__ == "__main__":
    main()
