"""The messages of a turn in the dataset: each stays one, with a separator between them."""

import json

import pytest

from case_folders import turns
from huiyin.questions.messages import joiner, with_messages
from llm_folder import Folder, complaint, succeeded
from test_llm import dataset, line, pair, write_paired

HISTORY = [
    {"time": 0, "user_id": "2", "text": "在吗，问个事，急", "texts": ["在吗，问个事", "急"]},
    {"time": 60, "user_id": "me", "text": "说，听着", "texts": ["说", "听着"]},
    {"time": 900, "user_id": "me", "text": "困了", "texts": ["困了"]},
    {"time": 1800, "user_id": "me", "text": "睡，晚安", "texts": ["睡", "晚安"]},
]


@pytest.fixture
def folder(tmp_path, ollama):
    folder = Folder(tmp_path, ollama)
    turns(HISTORY).write_parquet(tmp_path / "turns.parquet")
    return folder


@pytest.mark.parametrize(
    ("separator", "text"),
    [
        ("\n", "一 二\n三，四\n\t五"),
        ("，", "一 \r\n\u2028 二，三，四，\t五"),
        (" / ", "一 \r\n\u2028 二 / 三，四 / \t五"),
    ],
)
def test_no_message_holds_a_line_break_where_one_is_the_separator(separator, text):
    assert joiner(separator)(["一 \r\n\u2028 二", "三，四", "\t五"]) == text


def test_what_is_hidden_is_hidden_message_by_message():
    assert joiner("\n", lambda text: text.replace("12", "*"))(["12 1", "2\n1", "12"]) == "* 1\n2 1\n*"


def test_only_a_text_that_is_the_turns_own_is_taken_apart():
    samples = [
        {"turn_id": 1, "turn_ids": [1], "prompt_turn_id": 0, "prompt": "在吗，问个事，急", "reply": "说，听着"},
        {"turn_id": 1, "turn_ids": [1], "prompt_turn_id": 0, "prompt": "在吗，急", "reply": "说，听着"},  # by hand
        {"turn_id": 1, "turn_ids": [1, 3], "prompt_turn_id": 0, "prompt": "在吗，问个事，急", "reply": "说，听着"},
    ]
    found = with_messages([{**sample, "decided_by": "quote"} for sample in samples], turns(HISTORY), joiner("|"))
    texts = [(sample["prompt"], sample["reply"]) for sample in found]
    assert texts == [("在吗，问个事|急", "说|听着"), ("在吗，急", "说|听着"), ("在吗，问个事|急", "说，听着")]


def test_a_prompt_that_was_written_is_one_message_and_the_questions_stay_as_they_were(folder):
    paired = [pair(1, "在吗，问个事，急", "说，听着", turn=1)]
    write_paired(folder, paired, [line(30, "睡，晚安", turn=3, reason="none")])
    folder.ollama.before_chat = lambda k, body: json.dumps({"1": "还不睡，\n几点了"})
    rows, _ = dataset(folder)
    assert [(row["instruction"], row["output"]) for row in rows] == [
        ("在吗，问个事\n急", "说\n听着"),
        ("还不睡， 几点了", "睡\n晚安"),
    ]
    [body] = folder.chats()
    assert "名me：说，听着\n名me：困了\n（这里缺一句话）\n名me：睡，晚安\n" in body["messages"][1]["content"]


def test_what_two_turns_became_by_a_model_is_one_message(folder):
    folder.settings("pair", "method: empty\nmerge_replies: llm\n")
    folder.settings("gen", "context_turns: 0\n")
    folder.ollama.before_chat = lambda k, body: json.dumps(
        {"merged": [{"first": "2", "last": "3", "text": "困了，睡，晚安"}]}
        if "merged" in body["format"]["properties"]
        else {"1": "去哪儿呢", "2": "几点钟睡"}
    )
    succeeded(folder.pair())
    assert [row["output"] for row in dataset(folder)[0]] == ["说\n听着", "困了，睡，晚安"]


@pytest.mark.parametrize("good", [r'"\n"', "，", '" / "', '"||"', r'"\n\n"', "🐟"])
def test_a_separator_may_be_any_mark(folder, good):
    folder.settings("gen", f"message_separator: {good}\nfill: false\n")
    write_paired(folder, [pair(1, "在吗，问个事，急", "说，听着", turn=1)])
    [[row], _] = dataset(folder)
    separator = json.loads(good) if good.startswith('"') else good
    assert row["output"] == f"说{separator}听着"


@pytest.mark.parametrize("bad", ["", '" "', r'"\t　"', r'"\r\n"', r"\n", "1", "和", "_", "<|sep|>", '"["', "。" * 9])
def test_a_separator_that_cannot_be_told_from_a_message_is_one_line(folder, bad):
    folder.settings("gen", f"message_separator: {bad}\n")
    assert complaint(folder.gen()).startswith(
        f"gen.py: {folder.path}/gen.yaml: message_separator: must be 1 to 8 characters, such as "
    )
