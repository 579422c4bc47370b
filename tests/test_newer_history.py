"""The history has grown by a month: what was asked of the months before comes from the answer cache."""

import json

import pytest

from case_folders import turns
from helpers import run_script
from huiyin.llm.client import Client
from huiyin.questions.filling import GAP
from llm_folder import arguments, other_words, succeeded
from ollama_server import exactly, whole

DAY = 86400


def talk(group, days, nickname):
    """Return two turns a day, a question of another member and the reply of the target."""
    for day in days:
        asked = {"group_id": group, "time": day * DAY, "user_id": "7", "text": f"{group}在吗{day}"}
        quote = {"reply_to_turn": None, "text": f"在的{group}{day}"}
        yield from (asked, {**asked, "user_id": "me", "nickname": nickname, "time": day * DAY + 60, **quote})


def answer(k, body):
    """Nothing belongs together, no turn answers any, and all missing halves are written, each in other words."""
    empty = {"merged": [], "answers": "none"}
    answers = {
        name: empty[name] if name in empty else other_words(20 * k + int(name)) for name in body["format"]["properties"]
    }
    return exactly(whole(json.dumps(answers)))


@pytest.fixture
def asked(folder):
    """Return what pair and gen ask of a history of January and February (`until` that day), and what of one that has
    more, in which the target has another nickname, `everywhere` in the whole of it; and what they print then."""

    def asked(pair="", prompt="config/prompts/gen.md", everywhere=False, until=60):
        folder.settings("pair", f"merge_replies: llm\nlinker_alone: never\nbatch_size: 4\n{pair}")
        folder.settings("gen", "batch_size: 4\n")
        folder.ollama.before_chat = answer
        stages = [("pair", {}), ("gen", {"prompt": prompt})]
        then, now, new = (
            [turn for group in "ab" for turn in talk(group, range(*days), name)]
            for *days, name in ((1, until, 3, "旧名"), (1, until, 3, "新名"), (until, 69, 3, "新名"))
        )
        questions = []
        for rows in (then, (now if everywhere else then) + new):
            turns(rows).write_parquet(folder.path / "turns.parquet")
            done = [succeeded(run_script(stage, *arguments(stage, folder.path, **given))) for stage, given in stages]
            questions.append([body["messages"][-1]["content"] for body in folder.chats()])
            folder.ollama.requests.clear()
        return *questions, "".join(one.stdout for one in done)

    return asked


def about(questions, first, last):
    """Return those of `questions` that show a reply of one of these days."""
    return [
        text for text in questions if any(f"在的{group}{day}\n" in text for group in "ab" for day in range(first, last))
    ]


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("question", ["$items", "$items\n$name在回应什么？"])
def test_only_the_new_month_is_asked(asked, tmp_path, question, everywhere):
    (tmp_path / "gen.md").write_text(question)
    old, new, output = asked(prompt=tmp_path / "gen.md", everywhere=everywhere)
    assert len(old) == 2 * (20 + 2 * 3 + 2 * 3)  # of a group: each reply alone, and 3 batches a month in either stage
    assert len(new) == len(about(new, 60, 69)) == 2 * (3 + 1 + 1)
    for stage, count in (("pair", 2 * (20 + 2 * 3)), ("gen", 2 * 20)):
        of = f"{stage}: of {count} questions about what was there the last time"
        assert f"{of}, {count} (100.0%) are answered from the answer cache" in output.splitlines()


def test_the_answers_that_an_earlier_version_has_kept_are_found(asked, monkeypatch):
    key = Client.key
    with monkeypatch.context() as patch:
        patch.setattr(Client, "key", lambda client, question, named=True: key(client, question, named=True))
        asked()
    assert asked()[0] == []
    assert len(asked(everywhere=True)[1]) == 0


def test_of_a_month_that_goes_on_only_the_new_days_are_asked(asked):
    """Although the last batch of that month had room for more."""
    _, new, _ = asked("method: empty\n", until=55)
    assert sum(text.count(GAP) for text in new) == 2 * len(range(55, 69, 3))


def test_what_is_left_out_at_the_start_changes_the_batches_of_that_month_alone(asked):
    old, new, _ = asked("newest: 40\n")
    batches = [text for text in new if text not in about(new, 60, 69)]
    assert len(about(old, 31, 60)) == 2 * (10 + 3 + 3) and about(batches, 31, 60) == []
