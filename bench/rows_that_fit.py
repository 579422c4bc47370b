"""Check that no row which train fits into cutoff_len loses the end of a reply, with LLaMA-Factory's own encoding.

    python bench/rows_that_fit.py data/tiny/tiny-qwen2 data/demo/10002/generated ... [--cutoff 1024 512 256]

Prints a line for each dataset, template and cutoff_len: the rows of gen, those that are longer, the replies in them and
how many of these LLaMA-Factory would learn with their end; then the rows that train passes on, the samples it leaves
out, the replies, and how many are learnt with their end. Nothing is trained. It fails if a reply loses its end, or if
a row has another number of tokens than train counts.
"""

import argparse
import tempfile
from copy import copy
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any
from unittest import mock

from llamafactory.data.converter import AlpacaDatasetConverter
from llamafactory.data.parser import DatasetAttr
from llamafactory.data.processor import SupervisedDatasetProcessor
from llamafactory.data.template import TEMPLATES, get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments
from transformers import AutoTokenizer

from huiyin.serving.templates.chat_format import ChatFormat
from huiyin.serving.templates.known import FORMATS
from huiyin.training.rows import Dataset, Row, fit, read_dataset
from huiyin.training.template import Encoding, template_settings

LLAMA3 = FORMATS["llama3"]
COLUMNS = ["template", "cutoff", "rows", "longer", "replies", "with end", "rows", "too long", "replies", "with end"]


class LlamaFactory:
    """Encodes rows as a training with this chat format, tokenizer, cutoff_len and default system text does."""

    def __init__(self, chat_format: ChatFormat, base: Path, cutoff_len: int, system: str = "", **more: Any) -> None:
        given = {**template_settings(chat_format), "cutoff_len": cutoff_len, "default_system": system, **more}
        arguments, tokenizer = DataArguments(**given), AutoTokenizer.from_pretrained(base)
        self.end = tokenizer.convert_tokens_to_ids(chat_format.stop[0])
        fields = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
        attributes = DatasetAttr(load_from="file", dataset_name="rows", **fields, history="history")
        self.convert = AlpacaDatasetConverter(attributes, arguments)
        with mock.patch.dict(TEMPLATES, {arguments.template: copy(TEMPLATES[arguments.template])}):  # it is changed
            encoding = get_template_and_fix_tokenizer(tokenizer, arguments)
        self.processor = SupervisedDatasetProcessor(encoding, tokenizer, None, arguments)

    def tokens(self, rows: list[dict]) -> list[tuple[list[int], list[bool]]]:
        """Return (the tokens, is each learnt?) of each row."""
        converted = [self.convert(row) for row in rows]
        columns = {name: [row[name] for row in converted] for name in converted[0]}
        encoded = self.processor.preprocess_dataset(columns)
        pairs = zip(encoded["input_ids"], encoded["labels"], strict=True)
        return [(tokens, [label >= 0 for label in labels]) for tokens, labels in pairs]

    def encode(self, rows: list[dict]) -> tuple[list[int], int, int]:
        """Return (the number of tokens of each row, the replies learnt from, those of them whose end is learnt)."""
        encoded = self.tokens(rows)
        runs = [groupby(zip(tokens, learnt, strict=True), itemgetter(1)) for tokens, learnt in encoded]
        replies = [[token for token, _ in run] for row in runs for is_reply, run in row if is_reply]
        return [len(tokens) for tokens, _ in encoded], len(replies), sum(self.end in reply for reply in replies)


def check(dataset: Dataset, chat_format: ChatFormat, base: Path, cutoff_len: int) -> list[int]:
    """Return the numbers of a line of the table."""
    program, encoding = LlamaFactory(chat_format, base, cutoff_len), Encoding(chat_format, base)
    measured = dataset.measure(encoding, 0)
    given = [row for part in measured for row in part]
    as_given = [row.part(0, len(row.exchanges)) for row in given]
    fitted = fit(measured, cutoff_len)
    passed_on = [*fitted.rows, *fitted.held_out]
    lengths, replies, ends = program.encode(passed_on)
    assert replies == ends == sum(1 + len(row["history"]) for row in passed_on)
    assert max(lengths) <= cutoff_len
    again = Dataset(dataset.files, [Row(**row) for row in passed_on], [], dataset.system).measure(encoding, 0)
    assert lengths == [row.tokens() for row in again.rows]
    before = [sum(len(row.exchanges) for row in given), program.encode(as_given)[2]]
    longer = sum(row.tokens() > cutoff_len for row in given)
    return [len(given), longer, *before, len(passed_on), fitted.too_long, replies, ends]


def with_llama3(base: Path, folder: Path) -> Path:
    """Return a folder with the tokenizer of `base` which has the tokens of Llama 3, too."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    first, *others, end = LLAMA3.control
    tokenizer.add_special_tokens({"bos_token": first, "eos_token": end, "additional_special_tokens": others})
    tokenizer.save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="folder of a base model")
    parser.add_argument("generated", type=Path, nargs="+", help="folders of gen")
    parser.add_argument("--cutoff", type=int, nargs="+", default=[1024, 512, 256])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bases = {"qwen": args.base, "llama3": with_llama3(args.base, Path(folder))}
        for generated in args.generated:
            dataset = read_dataset(generated)
            print(generated, "".join(f"{column:>10}" for column in COLUMNS), sep="\n")
            for template, base in bases.items():
                for cutoff_len in args.cutoff:
                    numbers = check(dataset, FORMATS[template], base, cutoff_len)
                    print("".join(f"{cell:>10}" for cell in [template, cutoff_len, *numbers]), flush=True)


if __name__ == "__main__":
    main()
