"""combine on random histories, against a plain implementation of the same contract; and what cases cannot hold."""

import dataclasses
import hashlib
import tempfile
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from case_folders import MESSAGE, messages
from helpers import EXAMPLES, run_script
from huiyin.common.errors import UserError
from huiyin.common.stage import Ledger
from plain_turns import plain_turns
from scripts import combine

PRESETS = {name: combine.Settings(**values) for name, values in combine.Settings.PRESETS.items()}
NOTICE = "请使用最新版手机QQ体验新功能"
EVENING = 1_704_153_540_000  # 2024-01-01T23:59:00Z: bursts go on across midnight
USERS = ["", "80000000", "1", "2", "3"]
NAMES = ["小明", "小明同学", "1", "啊", "A", "A b", " ", "qq.com"]

WORDS = ["你好", "a", "1", "啊", "，", "，，", "。", " ", "  ", "　", "\n", "\x1f", "\u200b", "\ufe0f", "\u3164"]
MENTIONS = [
    "@",
    "@小明",
    "@小明同学",
    "@小明 ",
    "@1 ",
    "@啊",
    "@A b",
    "a@1",
    "me@qq.com",
    "@全体成员",
    "@所有人 ",
    "@all",
    "@All",
]
SPECIAL = ["[图片]", "[表情]", "[图", "片]", "[打call]", NOTICE]

piece = st.sampled_from([*WORDS, *MENTIONS, *SPECIAL])
text = st.lists(piece, max_size=4).map("".join)
element = st.one_of(
    st.tuples(st.just("text"), text),
    st.tuples(st.just("at"), st.sampled_from(["@小明", "@1"])),
    st.tuples(st.sampled_from(["image", "reply"]), st.none()),
    st.tuples(st.just("face"), st.sampled_from(["[捂脸]", "[图片]"])),
)
pause = st.sampled_from([0, 0, 1, 1_000, 20_000, 59_000, 59_999, 60_000, 61_000, 100_000])


@st.composite
def histories(draw):
    """Messages of several groups in any order, as from QQNT or as from a CSV."""
    csv, count = draw(st.booleans()), draw(st.integers(1, 80))
    time, rows = EVENING, []
    for message_id in draw(st.permutations(range(count))):
        time += draw(pause)
        elements = draw(
            st.lists(st.tuples(st.just("text"), text), max_size=3) if csv else st.lists(element, max_size=4)
        )
        if draw(st.booleans()):  # its faces have no name
            elements = [(kind, None if kind == "face" else t) for kind, t in elements]
        quote = None if csv else draw(st.sampled_from([None, None, None, "dangling", *range(count + 2)]))
        rows.append(
            {
                "message_id": message_id,
                "group_id": draw(st.sampled_from(["9", "10", "11", "12", "13", "14"])),
                "time": time,
                "seq": None if csv else draw(st.integers(0, 3)),
                "user_id": draw(st.sampled_from(USERS)),
                "nickname": draw(st.sampled_from(NAMES)),
                "fragments": [t for _, t in elements if t is not None],
                "kinds": [kind for kind, _ in elements],
                "mentions": [] if csv else draw(st.lists(st.sampled_from(["1", "2", "all"]), max_size=2)),
                "reply_to": quote if isinstance(quote, int) else None,
                "reply_dangling": quote == "dangling",
            }
        )
    return pl.DataFrame(draw(st.permutations(rows)), MESSAGE | {"time": pl.Int64}).cast(MESSAGE)


def combined(history, chosen, part=combine.PART):
    """Return (turns as dicts with times in milliseconds, ledger as a dict), as combine makes them."""
    ledger = Ledger()
    with tempfile.TemporaryDirectory() as folder, patch.object(combine, "PART", part):
        path = Path(folder) / "messages.parquet"
        history.write_parquet(path, metadata={"faces": "names", "placeholders": ""})
        turns = combine.combine(path, chosen, ledger)
    ledger.check()
    moments = pl.col("time", "first_time", "last_time").dt.timestamp("ms"), pl.col("times").cast(pl.List(pl.Int64))
    return turns.with_columns(*moments).to_dicts(), ledger.as_dict()


def plain(history, chosen):
    return plain_turns(pd.DataFrame(history.to_dict(as_series=False)), **dataclasses.asdict(chosen))


@given(histories(), st.sampled_from(["seed", "default"]), st.sampled_from([15, combine.PART]))
@settings(max_examples=EXAMPLES, deadline=None)
def test_random_histories_become_the_turns_of_the_contract(history, preset, part):
    assert combined(history, PRESETS[preset], part) == plain(history, PRESETS[preset])


@given(histories(), st.integers(0, 4), st.sampled_from([1, 20, 60, 90]), st.booleans())
@settings(max_examples=20, deadline=None)
def test_the_numbers_of_the_rule_are_settings(history, others, seconds, quotes):
    chosen = combine.Settings(max_others_between=others, max_gap_seconds=seconds, quotes_start_a_turn=quotes)
    assert combined(history, chosen, 15) == plain(history, chosen)


def one_group(rows):
    """Messages of one group as from a CSV, a second apart."""
    usual = {"user_id": "1", "nickname": "甲", "seq": None}
    return messages([{**usual, "time": second, **row} for second, row in enumerate(rows)])


@given(st.lists(text, min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_a_special_text_leaves_no_comma_and_nothing_empty_behind(fragments):
    turns, _ = combined(one_group([{"fragments": ["[图片]", *fragments]}]), PRESETS["seed"])
    for turn in turns:
        assert turn["text"] and "，，" not in turn["text"] and turn["text"] == turn["text"].strip("， ")


@pytest.mark.parametrize("name", ["1", "啊"])
def test_hundreds_of_members_of_one_name_touch_no_other_text(name):
    kept = [f"{name}{name} {name}，{name}", f"信me@{name}.com", f"@{name}x", f"c = a@{name}+b", f"@{name}，好", "@ @"]
    texts = [*kept, f"好的@{name} 来@{name}"]
    rows = [{"user_id": str(index), "nickname": name, "fragments": [texts[index % len(texts)]]} for index in range(280)]
    turns, ledger = combined(one_group(rows), PRESETS["default"])
    assert [turn["text"] for turn in turns] == [*kept, "好的 来"] * 40
    assert [turn["mentions"] for turn in turns] == [*([] for _ in kept), ["279"]] * 40
    assert ledger == {"read": 280, "written": 280, "merged": 0, "dropped": {"empty": 0}}


def test_no_special_texts_at_all():
    history = one_group([{"fragments": ["[图片]"]}, {"fragments": [NOTICE]}])
    turns, ledger = combined(history, combine.Settings(special_texts=[]))
    assert [turn["text"] for turn in turns] == [f"[图片]，{NOTICE}"]
    assert ledger == {"read": 2, "written": 1, "merged": 1, "dropped": {"empty": 0}}


def test_fragments_without_a_kind_are_one_line():
    history = one_group([{"fragments": ["好", "在"]}]).with_columns(kinds=pl.lit(["text"]))
    with pytest.raises(
        UserError, match=r"messages\.parquet: fragments and kinds do not pair up; `make parse` makes it$"
    ):
        combined(history, PRESETS["default"])


def test_every_group_has_a_file_whose_name_fits(tmp_path):
    groups = ["1001", ".", "../a", "长" * 24, "长" * 30, "长" * 31, "b" * 220, "b" * 300]
    history = [{"group_id": group, "user_id": "1", "time": 0, "fragments": ["在"]} for group in groups]
    messages(history).write_parquet(tmp_path / "messages.parquet")
    arguments = tmp_path / "messages.parquet", "--config", "config/combine.yaml", "--out", tmp_path / "out"
    done = run_script("combine", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    long = {
        "长" * 30: "%E9%95%BF" * 22 + "%E9%9-" + hashlib.sha256(("长" * 30).encode()).hexdigest()[:16],
        "长" * 31: "%E9%95%BF" * 22 + "%E9%9-" + hashlib.sha256(("长" * 31).encode()).hexdigest()[:16],
        "b" * 300: "b" * 203 + "-" + hashlib.sha256(b"b" * 300).hexdigest()[:16],
        "长" * 24: "%E9%95%BF" * 24,
        "../a": "..%2Fa",
    }
    names = {f"turns.{long.get(group, group)}.json" for group in groups}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*names, "turns.parquet", "receipt.json"}
