"""train: rows that fit into cutoff_len, and texts that the base model would read as control tokens."""

import itertools
import json

import pytest
import yaml

from helpers import ROOT, run_script
from huiyin.common.errors import UserError
from huiyin.serving.templates.known import FORMATS
from huiyin.training.rows import Dataset, Row, fit, read_dataset, read_system
from huiyin.training.template import Encoding, is_control

SYSTEM = "你是“阿穗”，在群里聊天。"
PASTE = "这一段是从别的地方贴过来的，没有人会看完。" * 12


@pytest.fixture(scope="module")
def base(gguf):
    return gguf.parent / "tiny-qwen2"


@pytest.fixture(scope="module")
def encoding(base):
    return Encoding(FORMATS["qwen"], base)


def talk(number):
    return f"第{number}个问题", f"第{number}个回答，说完了"


def as_rows(exchanges, history):
    """Held-out rows of gen: a row for each exchange, with up to `history` earlier ones."""
    return [
        Row(*exchange, SYSTEM, exchanges[max(0, index - history) : index]) for index, exchange in enumerate(exchanges)
    ]


def fitted(encoding, rows, held_out=(), cutoff_len=150):
    result = fit(Dataset([], list(rows), list(held_out), SYSTEM).measure(encoding, 0), cutoff_len)
    assert result.read == result.written + result.too_long
    return result


def exchanges_of(rows):
    return [[*row["history"], (row["instruction"], row["output"])] for row in rows]


def test_the_oldest_exchanges_of_a_long_row_become_a_row(encoding):
    exchanges = [talk(0), talk(1), talk(2), (PASTE, "没看"), talk(3), talk(4), talk(5), talk(6)]
    result = fitted(encoding, [Row(*exchanges[-1], SYSTEM, exchanges[:-1]), Row("好吗", "好", SYSTEM)])
    assert (result.read, result.written, result.too_long) == (9, 8, 1)
    *parts, (answer,) = exchanges_of(result.rows)
    assert answer == ("好吗", "好")
    assert list(itertools.chain(*parts)) == [exchange for exchange in exchanges if exchange[0] != PASTE]
    assert parts[-1][-1] == talk(6) and len(parts[-1]) > 1
    assert all(row["system"] == SYSTEM for row in result.rows)


def test_rows_that_fit_stay_as_they_are(encoding):
    rows = as_rows([talk(number) for number in range(5)], 2)
    measured = Dataset([], rows, [], SYSTEM).measure(encoding, 0)
    longest = max(row.tokens() for row in measured.rows)
    as_they_are = [[*row.history, (row.instruction, row.output)] for row in rows]
    assert exchanges_of(fit(measured, longest).rows) == as_they_are
    assert exchanges_of(fit(measured, longest - 1).rows) != as_they_are


def test_held_out_rows_keep_their_reply_and_the_newest_history(encoding):
    exchanges = [(PASTE, "没看"), talk(1), talk(2)]
    held_out = [*as_rows(exchanges, 2), Row("长的", PASTE, SYSTEM, [talk(8)])]
    result = fitted(encoding, [Row(*talk(7), SYSTEM)], held_out)
    assert exchanges_of(result.held_out) == [[talk(1)], [talk(1), talk(2)]]
    assert (result.read, result.written, result.too_long) == (5, 3, 2)


def test_a_cutoff_that_no_reply_fits_into_is_refused(encoding):
    line = "no reply fits into 20 tokens with its prompt and the system text; raise cutoff_len"
    with pytest.raises(UserError, match=line):
        fitted(encoding, [Row(*talk(0), SYSTEM)], cutoff_len=20)


@pytest.mark.parametrize(
    ("token", "special", "control"),
    [
        ("<s>", True, True),
        ("<|fim_middle|>", False, True),
        ("<think>", False, True),
        ("</tool_call>", False, True),
        ("[INST]", False, True),
        ("<｜User｜>", False, True),
        ("<h1>", False, False),
        ("  ", False, False),
        ("\n\n", False, False),
        ("▁▁▁", False, False),
    ],
)
def test_added_tokens_that_are_words_or_blanks_are_no_control_tokens(token, special, control):
    assert is_control(token, special) is control


# ---- What train prints


@pytest.fixture
def dry_run(base, tmp_path):
    """Return a function that tells what preflight prints of these rows, with changes of train.yaml."""

    def run(rows, held_out=(), **changes):
        folder = tmp_path / "generated"
        folder.mkdir()
        for name, content in (("alpaca", rows), ("alpaca_eval", list(held_out)), ("dataset_info", {})):
            (folder / f"{name}.json").write_text(json.dumps(content, default=vars), encoding="utf-8")
        (folder / "system.txt").write_text(SYSTEM, encoding="utf-8")
        settings = yaml.safe_load((ROOT / "config/train.yaml").read_text(encoding="utf-8"))
        settings |= {"model_name_or_path": str(base), **changes}
        (tmp_path / "train.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        words = "--preflight config/demo/preflight.yaml --models config/models.yaml --llm config/demo/llm.yaml"
        folders = ["--config", tmp_path / "train.yaml", "--cache", tmp_path, "--out", tmp_path / "out"]
        folders += ["--export", "config/demo/export.yaml"]
        return run_script("train", folder, *words.split(), *folders, "--gpu", "none", "--dry-run")

    return run


def test_preflight_tells_what_a_cutoff_costs(dry_run):
    exchanges = [talk(0), talk(1), ("怎么说的", PASTE), talk(2), talk(3)]
    done = dry_run([Row(*exchanges[-1], SYSTEM, exchanges[:-1])], cutoff_len=150)
    assert done.returncode == 0, done.stderr
    line = "preflight: cutoff     150 tokens, 1 longer rows are split, 1 replies that do not fit are left out"
    assert line in done.stdout.splitlines()


@pytest.mark.parametrize("place", ["instruction", "output", "system", "history"])
def test_a_control_token_in_any_text_is_refused(dry_run, tmp_path, place):
    text = "前<|im_end|>后"
    changed = {place: [("在吗", text)] if place == "history" else text}
    done = dry_run([Row(*talk(0), SYSTEM)], [Row(*talk(1), SYSTEM), Row(**(vars(Row(*talk(2), SYSTEM)) | changed))])
    assert done.returncode == 1
    assert done.stderr == (
        f"train.py: {tmp_path}/generated/alpaca_eval.json row 1: a text contains <|im_end|>, a control token of the "
        "base model; `make clean-gen gen` makes the dataset again and such texts harmless\n"
    )


def test_a_system_text_that_is_no_text_is_one_line(tmp_path):
    (tmp_path / "system.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"system.txt: not UTF-8 text; `make gen` makes it"):
        read_system(tmp_path)


@pytest.mark.parametrize("content", ['[{"instruction": "密语"}]', '{"密语": 1}', '[{"instruction": "密'])
def test_what_is_no_dataset_is_one_line_without_a_word_of_it(tmp_path, content):
    for name in ("alpaca_eval.json", "dataset_info.json", "system.txt"):
        (tmp_path / name).write_text("[]")
    (tmp_path / "alpaca.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"alpaca.json: not the rows of a dataset \(.*\); `make gen` makes it") as error:
        read_dataset(tmp_path)
    assert "密" not in str(error.value)


def test_a_system_text_of_another_encoding_is_one_line(tmp_path):
    rows = json.dumps([{"instruction": "吃了吗", "output": "吃了"}], ensure_ascii=False)
    for name in ("alpaca.json", "alpaca_eval.json", "dataset_info.json", "system.txt"):
        (tmp_path / name).write_text(rows, encoding="gbk" if name == "system.txt" else "utf-8")
    with pytest.raises(UserError, match=r"system.txt: not UTF-8 text; `make gen` makes it"):
        read_dataset(tmp_path)
