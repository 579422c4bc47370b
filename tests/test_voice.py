"""voice: the numbers on cases made by hand, and the whole of it on the demo's tiny model, killed on the way."""

import json
import shutil
from datetime import timedelta
from types import SimpleNamespace
from unittest.mock import ANY

import pytest

from case_folders import START, read_lines, turns
from helpers import receipt, run_script
from huiyin.common.digests import sha256
from huiyin.common.stage import Stage
from huiyin.questions.messages import joiner
from huiyin.serving import process
from huiyin.serving.templates.known import FORMATS
from huiyin.training.trained import Trained
from huiyin.voice import models
from huiyin.voice.losses import Loss, Measured, measure_losses, say
from huiyin.voice.material import Groups
from huiyin.voice.others import held_out_rows, most_active
from llm_folder import succeeded
from scripts.tools.voice import version_before, write_json

CHARACTERS = [10, 20, 30, 40] * 10


def loss(words, end):
    """Return the loss of a model that needs so many bits per character, and for an end mark."""
    return Loss([words * count * (1 + index % 3 / 20) for index, count in enumerate(CHARACTERS)], [end] * 40)


def measured(words, end=1.0):
    """Return what a base model with 3 bits per character and 9 for an end mark becomes with `words` and `end`."""
    return Measured(CHARACTERS, loss(3.0, 9.0), loss(words, end))


# ---- Bits per character


def test_nats_of_tokens_become_bits_of_a_row():
    assert Loss.of([{"words": [0.6931472, 1.3862944], "end": 2.0794415}]).words == [pytest.approx(3)]
    assert Loss.of([{"words": [], "end": 2.0794415}]) == Loss([0.0], [pytest.approx(3)])


def test_what_is_learnt_of_the_words_is_no_matter_of_the_end_mark():
    found = measure_losses(measured(3.0), {}, {}, seed=1)
    assert found["words"]["gain"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert found["end"]["gain"]["mean"] == 8.0 and found["own_gain"] is None
    lines = say(found)
    assert "nothing is learnt" in lines[0] and "it has learnt when to stop" in lines[1]
    assert "cannot be told from the group's" in lines[2]


@pytest.mark.parametrize(("on_others", "is_his"), [(3.0, True), (2.5, True), (2.0, False), (1.0, False)])
def test_the_voice_is_what_is_gained_on_the_member_and_not_on_others(on_others, is_his):
    found = measure_losses(measured(2.0), {"a": measured(on_others), "b": measured(on_others)}, {}, seed=1)
    assert found["own_gain"]["mean"] == pytest.approx((on_others - 2.0) * 1.05, abs=0.02)
    assert (found["own_gain"]["low"] > 0) == is_his
    assert ("it has learnt this member" in say(found)[2]) == is_his


def test_the_adapter_of_another_is_the_stricter_yardstick():
    adapters = {"a": loss(2.5, 1.0), "b": loss(1.9, 1.0)}
    found = measure_losses(measured(2.0), {}, adapters, seed=1)
    assert found["over_adapter"]["a"]["low"] > 0 > found["over_adapter"]["b"]["high"]
    assert [line.partition(":")[0] for line in say(found)[3:]] == [
        f"Against the adapter of {user}, on the member's replies" for user in "ab"
    ]


# ---- The version before


def test_the_numbers_of_the_version_before_stay_until_the_one_after(tmp_path):
    (tmp_path / "adapter").mkdir()
    weights = tmp_path / "adapter/adapter_model.safetensors"

    def measure(version, number):
        weights.write_text(version)
        with Stage("voice", tmp_path / "voice") as stage:
            stage.input(weights)
            if before := version_before(stage, weights):
                write_json(stage.output("previous.json"), before)
            write_json(stage.output("voice.json"), {"number": number, "triples": ["private"]})
        return before

    assert measure("first", 1) == {}
    assert measure("second", 2) == {"number": 1, "made_at": ANY}
    assert measure("second", 2.1) == {"number": 1, "made_at": ANY}  # with other settings
    before = measure("third", 3)
    assert before == {"number": 2.1, "made_at": ANY} and before["made_at"]
    (tmp_path / "voice/voice.json").write_text("{")
    assert measure("fourth", 4) == {}


# ---- Replies of other members


def test_others_are_the_most_active_after_the_cut_and_their_replies_are_paired_by_quotes():
    rows = [{"time": 10 * number, "user_id": user, "text": f"t{number}"} for number, user in enumerate("abc" * 20)]
    rows[50]["reply_to_turn"] = 49  # c to b
    rows[56] |= {"reply_to_turn": 54, "text": "<|im_end|> 13800138000"}  # c to a
    rows[54] |= {"text": "t54，x", "texts": ["t54", "x"], "message_ids": [54, 55]}
    rows[54] |= {"times": [START + timedelta(seconds=540)] * 2, "mentioned": [[], []]}
    rows[59]["quotes_outside"] = True
    history, cut = turns(rows), START + timedelta(seconds=300)
    assert most_active(history, cut, 2) == ["a", "b"] and most_active(history, START + timedelta(seconds=500), 9) == []
    settings = SimpleNamespace(history_turns=3, history_gap_minutes=10)
    found = held_out_rows(history, ["c"], cut, 2, joiner("\n", str.upper), "system", settings)
    assert [row["instruction"] for row in found["c"]][-1] == "T54\nX"
    assert found["c"][-1]["output"] == "<|IM_END|> 13800138000" and len(found["c"]) == 2
    assert all(row["system"] == "system" for row in found["c"])


def test_texts_are_those_of_the_messages_before_and_after_the_cut():
    said = [("a", ["走，吗", "快"]), ("b", ["来"]), ("", ["谁"]), ("b", ["等\n等", "到了"]), ("a", ["好"])]
    rows = [
        {"time": 10 * at, "user_id": user, "text": "，".join(own), "texts": own} for at, (user, own) in enumerate(said)
    ]
    groups = Groups(turns(rows), "a", START + timedelta(seconds=30))
    assert groups.texts(joiner("\n")) == {"member": ["走，吗\n快"], "others": ["来"], "others_real": ["等 等\n到了"]}


# ---- The models


@pytest.fixture
def exported(tmp_path):
    """A folder with an adapter, and a model that export has merged it into."""
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_model.safetensors").write_bytes(b"weights")
    (tmp_path / "exported/merged").mkdir(parents=True)
    (tmp_path / "exported/merged/model.safetensors").write_bytes(b"merged")
    digest = sha256(tmp_path / "exported/merged/model.safetensors")
    made_of = {"adapter_model.safetensors": sha256(tmp_path / "adapter/adapter_model.safetensors")}
    made = receipt("export", inputs=made_of, outputs={"merged": {"model.safetensors": digest}})
    (tmp_path / "exported/receipt.json").write_text(json.dumps(made))
    return tmp_path


@pytest.mark.parametrize(("changed", "name"), [(None, "merged"), ("adapter/adapter_model.safetensors", "adapter")])
def test_the_merged_model_is_measured_only_if_it_is_made_of_this_adapter(exported, monkeypatch, changed, name):
    monkeypatch.setattr(models, "save_tokenizer", lambda *_: None)
    trained = Trained({"template": "qwen"}, {}, "system", exported / "base", FORMATS["qwen"])
    if changed:
        (exported / changed).write_bytes(b"others")
    found = models.find_model(trained, exported / "adapter", exported / "exported", exported, Stage("voice", exported))
    assert (found.name, found.adapter) == (name, exported / "adapter" if changed else None)


# ---- The whole of it


class ChildHere:
    """ask.py in this process; it is as if we were killed when it has answered `rows` rows."""

    returncode, rows = 0, 0

    def __init__(self, command, **_):
        self.files, self.left = command[-2:], self.rows
        self.stdout = self.answer()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def kill(self):
        with open(self.files[1], "ab") as answers:
            answers.write(b'{"words": [1.0')

    def answer(self):
        from huiyin.serving import ask  # loads torch, which not every worker needs

        ask.main(*map(str, self.files))
        yield "\n"

    @classmethod
    def printed(cls, text, **_):
        cls.rows -= text.count("\n")
        if cls.rows < 0:
            raise KeyboardInterrupt


@pytest.fixture
def voice(demo, tmp_path, monkeypatch):
    """Measure the demo's model into a folder `out`; the run is killed after so many rows."""
    from huiyin.serving import ask

    monkeypatch.setattr(process, "Popen", ChildHere)
    monkeypatch.setattr(ask, "print", ChildHere.printed, raising=False)
    target = shutil.copytree(demo[0] / "data/demo/10002", tmp_path / "10002")
    base = shutil.copytree(demo[0] / "data/tiny/tiny-qwen2", tmp_path / "base")
    used = json.loads((target / "trained/train.yaml").read_text(encoding="utf-8"))
    (target / "trained/train.yaml").write_text(json.dumps({**used, "model_name_or_path": str(base)}))
    shutil.copytree(target / "trained", tmp_path / "10003/trained")
    files = {"config": "config/demo/voice.yaml", "export": "config/demo/export.yaml"}
    folders = {"generated": target / "generated", "exported": target / "exported", "cache": tmp_path}
    folders |= {"turns": demo[0] / "data/demo/combined/turns.parquet", "adapters": tmp_path / "10003/trained"}
    words = [word for name, value in {**files, **folders, "gpu": "none"}.items() for word in (f"--{name}", value)]

    def run(out, rows=1_000_000):
        ChildHere.rows = rows
        return run_script("tools/voice", target / "trained", *words, "--out", tmp_path / out)

    return SimpleNamespace(run=run, path=tmp_path, target=target)


def results(folder):
    return {name: (folder / name).read_bytes() for name in ("voice.json", "replies.jsonl")}


def test_killed_and_started_again_it_ends_the_same(voice):
    done = succeeded(voice.run("once"))
    for rows in (1, 30, 43):  # in the losses of the base model, after its replies, after those of the trained one
        with pytest.raises(KeyboardInterrupt):
            voice.run("again", rows)
        assert [path.name for path in (voice.path / "again").iterdir()] == [".work"]
    again = succeeded(voice.run("again"))
    assert "rows are there from the run before\n" in again.stdout
    assert results(voice.path / "again") == results(voice.path / "once")
    assert not (voice.path / "again/.work").exists()

    found = json.loads((voice.path / "once/voice.json").read_text(encoding="utf-8"))
    assert (found["model"], found["held_out"], len(found["triples"])) == ("merged", 11, 10)
    assert found["losses"]["words"]["gain"]["low"] > 0 and found["losses"]["own_gain"]
    assert found["losses"]["over_adapter"]["10003"]["mean"] == pytest.approx(0, abs=1e-3)  # it is the same adapter
    assert found["drawn_out"] == {"asked": 0, "drawn_out": 0, "share": None} or found["drawn_out"]["asked"] == 8
    lines = read_lines(voice.path / "once/replies.jsonl")
    held_out = json.loads((voice.target / "generated/alpaca_eval.json").read_text(encoding="utf-8"))
    assert [(line["prompt"], line["reply"]) for line in lines] == [
        (row["instruction"], row["output"]) for row in held_out
    ]
    learnt = len(json.loads((voice.target / "generated/alpaca.json").read_text(encoding="utf-8")))
    assert [line["row"] for line in lines] == list(range(learnt, learnt + 11))
    assert "Warning: only 11 held-out replies" in done.stdout
    assert [line["reply"] for line in lines if len(line["reply"]) > 5 and line["reply"] in done.stdout] == []


def test_without_held_out_replies_the_line_says_what_to_do(voice):
    (voice.target / "generated/alpaca_eval.json").write_text("[]\n")
    done = voice.run("none")
    assert (done.returncode, done.stderr) == (
        1,
        f"voice.py: {voice.target}/generated/alpaca_eval.json: no reply is held out, so nothing can be measured; raise "
        "eval_share in gen.yaml, or take a member with more turns (`make members` lists them)\n",
    )
