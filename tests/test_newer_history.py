"""The history has grown by a month: what was asked of the months before comes from the answer cache."""

import json
import re
import shutil
from dataclasses import replace

import pytest

from bench.written import qce
from case_folders import turns
from helpers import run_script
from huiyin.llm.client import Client
from huiyin.questions.filling import GAP
from llm_folder import arguments, other_words, succeeded
from ollama_server import exactly, whole
from scripts.demo.history import GROUPS, history

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


OLD, NEW, TARGET = 300, 360, 10002  # messages of the sample, and with a fifth more


def renamed(message):
    """The message of the sample, if its sender has another name now, in all groups."""
    sender = message.sender
    return replace(message, sender=replace(sender, nickname=f"新{sender.nickname}", cards=("", "")))


@pytest.fixture
def next_month(tmp_path):
    """The folders of combine: of a database, and of an export of QCE that goes on for a fifth, with other names."""
    sample, qce_folder = tmp_path / "sample", tmp_path / "qce"
    succeeded(run_script("demo/history", "--seed", 1, "--messages", OLD, "--out", sample))
    given = [sample / "nt_msg.db", "--key", sample / "key.txt", "--config", "config/decrypt.yaml"]
    succeeded(run_script("decrypt", *given, "--out", tmp_path / "decrypted"))
    qce_folder.mkdir()
    shown = [renamed(of) for of in history(1, NEW) if not of.dropped and of.sender]
    for group in GROUPS:
        text = "".join(qce((of for of in shown if of.group == group), group))
        (qce_folder / f"{group.number}.json").write_text(text, encoding="utf-8")
    folders = []
    for name, source in (("old", tmp_path / "decrypted/nt_msg.db"), ("new", qce_folder)):
        parsed, combined = tmp_path / name, tmp_path / f"{name} turns"
        succeeded(run_script("parse", source, "--config", "config/parse.yaml", "--out", parsed))
        options = ["--config", "config/combine.yaml", "--out", combined]
        succeeded(run_script("combine", parsed / "messages.parquet", *options))
        folders.append(combined)
    return folders


def test_another_export_of_the_same_people_under_other_names_asks_only_what_is_new(folder, next_month):
    folder.settings("gen", "batch_size: 4\n")
    folder.ollama.before_chat = answer
    counts = []
    for combined in next_month:
        shutil.copy(combined / "turns.parquet", folder.path)
        done = [run_script("pair", *arguments("pair", folder.path, target=TARGET))]
        done.append(run_script("gen", *arguments("gen", folder.path)))
        output = "".join(succeeded(one).stdout for one in done)
        counts.append(len(folder.chats()))
        folder.ollama.requests.clear()
    shares = re.findall(r"of (\d+) questions about what was there the last time, (\d+) ", output)
    assert len(shares) == 2 and all(int(old) > 10 and int(cached) >= 0.95 * int(old) for old, cached in shares)
    assert counts[1] < 0.4 * counts[0]
