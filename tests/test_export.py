"""export with Ollama as the backend: what is created there, and whose model is replaced."""

import hashlib
import json

import pytest

from helpers import run_script


@pytest.fixture
def export(demo, tmp_path, ollama):
    """Return a function that exports the demo's adapter to the test server and returns the finished process."""
    target = demo[0] / "data/demo/10002"
    (tmp_path / "llm.yaml").write_text(f"url: {ollama.url}\n")
    base = demo[0] / "data/tiny/tiny-qwen2"
    for name in ("adapter", "train.yaml"):
        (tmp_path / "trained").mkdir(exist_ok=True)
        (tmp_path / "trained" / name).symlink_to(target / "trained" / name)
    settings = json.loads((target / "trained/train.yaml").read_text(encoding="utf-8"))
    (tmp_path / "trained/train.yaml").unlink()
    (tmp_path / "trained/train.yaml").write_text(json.dumps({**settings, "model_name_or_path": str(base)}))

    def run():
        return run_script("export", tmp_path / "trained", "--generated", target / "generated", "--name", "huiyin-10002",
                          "--config", "config/export.yaml", "--cache", tmp_path / "cache",
                          "--llm", tmp_path / "llm.yaml", "--out", tmp_path / "exported")

    run.folder = tmp_path / "exported"
    run.system = (target / "generated/system.txt").read_text(encoding="utf-8")
    return run


def test_the_model_is_created_over_http_and_replaced_only_if_it_is_ours(export, ollama):
    done = export()
    assert done.returncode == 0, done.stderr
    made = ollama.created["huiyin-10002:latest"]
    merged = {path.name: f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
              for path in (export.folder / "merged").iterdir() if path.suffix in (".json", ".safetensors")}
    assert made["files"] == merged
    assert made["system"] == export.system
    assert made["config"]["rope_theta"] > 0
    assert made["parameters"] == {"stop": ["<|im_end|>"], "num_ctx": 2048, "temperature": 0.8, "top_p": 0.9}
    assert f'TEMPLATE """{made["template"]}"""' in (export.folder / "Modelfile").read_text(encoding="utf-8")
    receipt = json.loads((export.folder / "receipt.json").read_text(encoding="utf-8"))
    assert receipt["ollama"] == {"name": "huiyin-10002", "digest": ollama.models["huiyin-10002:latest"]}
    assert receipt["asked"]["who"] == "the Ollama model"
    assert ollama.requests[-1].body["model"] == "huiyin-10002"

    ollama.models["huiyin-10002:latest"] = "somebody else's"
    refused = export()
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [
        "export.py: Ollama already has a model huiyin-10002 which this pipeline did not make; "
        "rename it (ollama cp) and remove it: ollama rm huiyin-10002"]
    assert json.loads((export.folder / "receipt.json").read_text(encoding="utf-8")) == receipt
