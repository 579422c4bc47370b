"""Check that no row which train fits into cutoff_len loses the end of a reply, with LLaMA-Factory's own encoding.

    python bench/rows_that_fit.py data/tiny/tiny-qwen2 data/demo/10002/generated ... [--cutoff 1024 512 256]

Prints a line for each dataset, template and cutoff_len: the rows of gen, those that are longer, the replies in them and
how many of these LLaMA-Factory would learn with their end; then the rows that train passes on, the samples it leaves
out, the replies, and how many are learnt with their end. Nothing is trained. It fails if a reply loses its end, or if
a row has another number of tokens than train counts.
"""

import argparse
import tempfile
from itertools import groupby
from pathlib import Path

from llamafactory.data.converter import AlpacaDatasetConverter
from llamafactory.data.parser import DatasetAttr
from llamafactory.data.processor import SupervisedDatasetProcessor
from llamafactory.data.template import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments
from transformers import AutoTokenizer

from huiyin.training.rows import Dataset, Row, fit, read_dataset
from huiyin.training.template import Encoding

ENDS = {"qwen": "<|im_end|>", "llama3": "<|eot_id|>"}
LLAMA3 = {  # the tokens of Llama 3, for a tokenizer without them
    **{"bos_token": "<|begin_of_text|>", "eos_token": ENDS["llama3"]},
    "additional_special_tokens": ["<|start_header_id|>", "<|end_header_id|>"],
}
COLUMNS = ["template", "cutoff", "rows", "longer", "replies", "with end", "rows", "too long", "replies", "with end"]


class LlamaFactory:
    """Encodes rows as a training with this template, tokenizer and cutoff_len does."""

    def __init__(self, template: str, base: Path, cutoff_len: int) -> None:
        arguments = DataArguments(template=template, cutoff_len=cutoff_len, default_system="")
        tokenizer = AutoTokenizer.from_pretrained(base)
        self.end = tokenizer.convert_tokens_to_ids(ENDS[template])
        fields = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
        attributes = DatasetAttr(load_from="file", dataset_name="rows", **fields, history="history")
        self.convert = AlpacaDatasetConverter(attributes, arguments)
        encoding = get_template_and_fix_tokenizer(tokenizer, arguments)
        self.processor = SupervisedDatasetProcessor(encoding, tokenizer, None, arguments)

    def encode(self, rows: list[dict]) -> tuple[list[int], int, int]:
        """Return (the tokens of each row, the replies learnt from, those of them whose end is learnt)."""
        converted = [self.convert(row) for row in rows]
        columns = {name: [row[name] for row in converted] for name in converted[0]}
        encoded = self.processor.preprocess_dataset(columns)["labels"]
        learnt = [list(run) for labels in encoded for is_reply, run in groupby(labels, lambda x: x >= 0) if is_reply]
        return [len(labels) for labels in encoded], len(learnt), sum(self.end in reply for reply in learnt)


def check(dataset: Dataset, template: str, base: Path, cutoff_len: int) -> list[int]:
    """Return the numbers of a line of the table."""
    program, encoding = LlamaFactory(template, base, cutoff_len), Encoding(template, base)
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
    tokenizer.add_special_tokens(LLAMA3)
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
                    numbers = check(dataset, template, base, cutoff_len)
                    print("".join(f"{cell:>10}" for cell in [template, cutoff_len, *numbers]), flush=True)


if __name__ == "__main__":
    main()
