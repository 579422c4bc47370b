"""The benchmarks of pairing run on a small file of annotated chat."""

import gzip
import json
import subprocess
import sys

from helpers import ROOT


def test_the_benchmark_predicts_every_message_of_a_person(tmp_path):
    messages = [("ann", "hi all"), ("ben", "ann: hello"), ("ben", "how are you"), (None, "cat has joined")]
    messages += [("ann", "ben: fine"), ("cat", "what"), ("", "")]
    with gzip.open(tmp_path / "in.jsonl.gz", "wt", encoding="utf-8") as file:
        for number, (user, text) in enumerate(messages):
            line = {"log_id": "x", "line_no": number, "time": 1_000_000 + 60 * ((number + 1) // 2), "user": user}
            file.write(json.dumps({**line, "text": text, "is_system": not user}) + "\n")
    script = ROOT / "bench/predict_replies.py"
    subprocess.run([sys.executable, script, tmp_path / "in.jsonl.gz", tmp_path / "out.jsonl"], check=True)
    predictions = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    parents = [(line["log_id"], line["line_no"], line["parent"]) for line in predictions]
    assert parents == [("x", 0, None), ("x", 1, 0), ("x", 2, 1), ("x", 4, 2), ("x", 5, None)]
    assert predictions[0]["conf"] == 1  # it has no candidate
    assert all(0 < line["conf"] < 1 for line in predictions[1:])
