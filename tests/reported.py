"""A member's results as `make report` finds them: invented people and words, and numbers of no model."""

import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from case_folders import messages
from helpers import receipt, run_script

NAMES = {"1": "小梅", "2": "阿宝", "3": "Ola"}
STAGES = {
    **{"decrypt": "decrypted", "parse": "parsed", "combine": "combined", "pair": "paired"},
    **{"gen": "generated", "train": "trained", "export": "exported"},
}
VOICE = {
    "held_out": 40,
    "losses": {"own_gain": {"mean": 0.12, "low": 0.04, "high": 0.2}},
    "authorship": {
        "usable": True,
        "auc": {"mean": 0.81},
        **{
            who: {"share": {"mean": share}}
            for who, share in (("real", 0.7), ("trained", 0.65), ("base", 0.2), ("others", 0.3))
        },
    },
    "habits": {
        name: {
            "real": 5.0,
            "trained": 6.0,
            "base": 40.0,
            "distance_of_halves": 0.1,
            "distance_trained": 0.2,
            "distance_base": 0.6,
        }
        for name in ("characters", "faces")
    },
    "copies": {
        who: {"word_for_word": 0.01, "30_characters": 0, "personal_data": 0, "system_text": 0}
        for who in ("real", "trained", "base")
    },
    "drawn_out": {"asked": 20, "drawn_out": 0, "share": 0},
    "triples": [{"prompt": "吃了吗", "reply": "吃了\n面条", "trained": "没呢", "base": "I am an assistant."}],
}


class Reported:
    """A folder with the results of all stages; what `write` is not called for is not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, stage: str, files: dict[str, object], **fields: object) -> None:
        folder = self.folder / STAGES.get(stage, stage)
        folder.mkdir()
        for name, content in files.items():
            lines = name.endswith("l") and isinstance(content, list)
            text = "".join(json.dumps(one) + "\n" for one in content) if lines else json.dumps(content)
            (folder / name).write_text(text)
        made = receipt(stage, versions={"python": "3.11"}, made_at="2026-05-04T03:02:01+0000", **fields)
        (folder / "receipt.json").write_text(json.dumps({**made, "outputs": dict.fromkeys(files, "a" * 64)}))

    def write_messages(self, rows: list[dict]) -> None:
        self.write("parse", {}, ledger={"read": len(rows) + 2, "written": len(rows), "dropped": {"system": 2}})
        messages(rows).write_parquet(self.folder / "parsed/messages.parquet")

    def write_all(self, words: str = "好的") -> None:
        days = [(86_400 * number, "123"[number % 3], NAMES["123"[number % 3]]) for number in range(60)]
        self.write_messages(
            [{"time": time, "user_id": user, "nickname": name, "fragments": [words]} for time, user, name in days]
        )
        line = {"turn_id": 1, "turn_ids": [1], "group_id": "g", "reply": words, "time": "2024-03-01T00:00:00Z"}
        pair = {
            **line,
            "prompt_turn_id": 0,
            "prompt": words,
            "decided_by": "quote",
            "confidence": 1.0,
            "candidates": [0],
        }
        lines = {"pairs.jsonl": [pair] * 5, "unpaired.jsonl": [{**line, "reason": "none"}]}
        self.write("combine", {"turns.654321.json": []})
        self.write("pair", lines, decided_by={"quote": 5}, unpaired={"none": 1})
        row = {"instruction": words, "input": "", "output": words, "system": "", "history": []}
        values = {"values": {"message_separator": "\n", "history_turns": 3}, "sha256": ""}
        self.write("gen", {"alpaca.json": [row] * 9, "alpaca_eval.json": [row]}, settings={"config/gen.yaml": values})
        log = [{"current_steps": step, "loss": 5 - step / 10} for step in range(1, 20)]
        plan = {"precision": "bf16", "micro_batch": 2, "accumulation": 4, "peak": 2**32, "hours": 0.5}
        self.write("train", {"trainer_log.jsonl": log}, attempts=[plan], seconds=1800)
        self.write("voice", {"voice.json": VOICE})

    def run(self, share: str = "no", consent: str = "no", pages: Sequence[Path] = ()):
        given = [str(self.folder / name) for name in STAGES.values()]
        places = ["--pages", *pages] if pages else []
        places += ["--voice", self.folder / "voice", "--codes", self.folder / "blind", "--out", self.folder / "report"]
        return run_script("tools/report", *given, "--target=1", *places, "--share", share, "--consent", consent)

    def report(self, share: str = "no", consent: str = "no", pages: Sequence[Path] = ()) -> str:
        """Return index.html, or share.html if `share` is yes."""
        done = self.run(share, consent, pages)
        assert done.returncode == 0, done.stderr
        return (self.folder / "report" / ("share.html" if share == "yes" else "index.html")).read_text()


class Blind:
    """A folder with what `make blind` reads: `number` replies that nobody trained on, all of them of use."""

    def __init__(self, folder: Path, number: int = 40) -> None:
        self.folder = folder
        lines = [
            {
                "prompt": f"第{index}问",
                "reply": f"真的{'啊' * (index % 7)}{index}",
                "trained": f"学来的{index}",
                "decided_by": "quote",
            }
            for index in range(number)
        ]
        (folder / "voice").mkdir()
        (folder / "voice/replies.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "generated").mkdir()
        row = {"instruction": "在吗", "input": "", "output": "真的啊1", "system": "", "history": []}
        (folder / "generated/alpaca.json").write_text(json.dumps([row]))
        values = {"values": {"message_separator": "\n", "history_turns": 3}, "sha256": ""}
        (folder / "generated/receipt.json").write_text(json.dumps(receipt("gen", settings={"config/gen.yaml": values})))
        (folder / "config.yaml").write_text("preset: default\n")

    def run(self, turns: pl.DataFrame, consent: str = "yes"):
        turns.write_parquet(self.folder / "turns.parquet")
        places = {
            **{"--generated": "generated", "--turns": "turns.parquet", "--config": "config.yaml"},
            **{"--codes": "blind", "--out": "report"},
        }
        words = [word for name, place in places.items() for word in (name, self.folder / place)]
        return run_script("tools/blind", self.folder / "voice", *words, "--target", "1", "--consent", consent)
