"""Save the tokenizer as the training used it, and LLaMA-Factory's Modelfile, which shows the prompt of the training.

python huiyin/serving/save_tokenizer.py BASE TEMPLATE FOLDER MODELFILE
"""

import sys
from pathlib import Path

from llamafactory.data.template import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments
from transformers import AutoTokenizer


def main(base: str, template: str, folder: str, modelfile: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")  # as who generates in batches needs it
    prompt = get_template_and_fix_tokenizer(tokenizer, DataArguments(template=template, default_system=""))
    tokenizer.save_pretrained(folder)
    Path(modelfile).write_text(prompt.get_ollama_modelfile(tokenizer), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
