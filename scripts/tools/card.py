"""Check that there is a card to train on, before the hours of work that come before the training.

python scripts/tools/card.py --gpu 0
"""

import huiyin.common.starting  # noqa: F401

from collections.abc import Sequence

from huiyin.common.errors import run
from huiyin.common.stage import arguments
from huiyin.training.card import check_card, find_card, torch_cuda


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, config=False, out=False)
    parser.add_argument("--gpu", required=True, help="index of the card (several: 0,1)")
    for index in parser.parse_args(argv).gpu.split(","):
        check_card(find_card(index), torch_cuda())


if __name__ == "__main__":
    run(main)
