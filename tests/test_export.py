"""export: the merged model is the trained one, what Ollama is given, and whose model is replaced."""

import hashlib
import json
import os
import pty
import shutil
import subprocess
import sys
from collections import namedtuple

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import huiyin.training.base
from helpers import CLEAN, ROOT, run_script
from huiyin.common.errors import UserError
from huiyin.serving.ollama_limits import choose_quantize, flatten_rope
from huiyin.training.llamafactory import environment
from huiyin.training.memory import GIB
from ollama_server import Refusal
from scripts.export import check_loss, check_memory, check_merge, check_merged, check_room

NAME = "huiyin-10002:latest"
PARAMETERS = {
    "stop": ["<|im_end|>"],
    "num_ctx": 512,
    "temperature": 0.8,
    "top_p": 0.9,
    "top_k": 40,
    "repeat_penalty": 1.0,
    "num_predict": 256,
}


class Export:
    """A folder with the demo's adapter, exported to the test server."""

    def __init__(self, demo, path, ollama):
        self.path, self.folder, self.target = path, path / "exported", demo[0] / "data/demo/10002"
        self.ollama, self.url = ollama, ollama.url
        shutil.copytree(self.target / "trained", path / "trained")
        shutil.copytree(demo[0] / "data/tiny/tiny-qwen2", path / "base")
        used = json.loads((path / "trained/train.yaml").read_text(encoding="utf-8"))
        (path / "trained/train.yaml").write_text(json.dumps({**used, "model_name_or_path": str(path / "base")}))
        (path / "export.yaml").write_text("preset: default\n")
        self.system = (self.target / "generated/system.txt").read_text(encoding="utf-8")

    def arguments(self):
        (self.path / "llm.yaml").write_text(f"url: {self.url}\n")
        return [
            self.path / "trained",
            "--generated",
            self.target / "generated",
            "--name",
            "huiyin-10002",
            "--config",
            self.path / "export.yaml",
            "--cache",
            self.path / "cache",
            "--llm",
            self.path / "llm.yaml",
            "--out",
            self.folder,
        ]

    def run(self):
        return run_script("export", *self.arguments())

    def complaint(self):
        """The one line of a run that fails; it leaves nothing behind."""
        before = self.receipt()
        done = self.run()
        assert done.returncode == 1
        assert self.receipt() == before
        assert not list(self.folder.glob(".*.part"))
        [line] = done.stderr.splitlines()
        return line.removeprefix("export.py: ").replace(f"{self.path}/", "").replace(self.url, "URL")

    def receipt(self):
        path = self.folder / "receipt.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def change(self, name, **values):
        path = self.path / name
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}))

    def base_is(self, **values):
        """Let the base model be another one, and have been so when it was trained."""
        self.change("base/config.json", **values)
        trained = json.loads((self.path / "trained/receipt.json").read_text(encoding="utf-8"))
        digest = hashlib.sha256((self.path / "base/config.json").read_bytes()).hexdigest()
        trained["base_model"]["sha256"]["config.json"] = digest
        (self.path / "trained/receipt.json").write_text(json.dumps(trained))


@pytest.fixture
def export(demo, tmp_path, ollama):
    return Export(demo, tmp_path, ollama)


def test_the_round_trip(export, ollama):
    """What Ollama's API document asks for, field by field; a chat; and whose model is replaced."""
    done = export.run()
    assert done.returncode == 0, done.stderr
    assert "create: success" in done.stdout.splitlines()
    made = ollama.created[NAME]
    assert set(made) - {"config"} == {"model", "files", "quantize", "template", "system", "parameters"}
    assert made["model"] == "huiyin-10002"
    merged = {
        path.name: f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path in (export.folder / "merged").iterdir()
        if path.suffix in (".json", ".safetensors")
    }
    assert made["files"] == merged
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    } <= set(made["files"])
    assert made["quantize"] == "q8_0"  # the tiny model's rows are 64 long
    assert made["system"] == export.system
    assert made["config"]["rope_theta"] == 1_000_000
    assert made["parameters"] == PARAMETERS  # num_ctx is the trained length
    modelfile = (export.folder / "Modelfile").read_text(encoding="utf-8")
    assert f'TEMPLATE """{made["template"]}"""' in modelfile and f'SYSTEM """{export.system}"""' in modelfile
    assert [request.body["model"] for request in ollama.requests if request.path == "/api/chat"] == ["huiyin-10002"]

    receipt = export.receipt()
    trained = json.loads((export.path / "trained/receipt.json").read_text(encoding="utf-8"))
    assert receipt["ollama"] == {"name": "huiyin-10002", "digest": ollama.models[NAME]}
    assert receipt["base_model"] == {**trained["base_model"], "folder": str(export.path / "base")}
    assert receipt["dataset"] == trained["inputs"] and receipt["losses"] == trained["results"]
    assert receipt["losses"]["eval_loss"] < receipt["losses"]["base_eval_loss"]
    assert receipt["training"] == {"settings": trained["settings"], "versions": trained["versions"]}
    assert receipt["check"]["rows"] == 11 and receipt["check"]["difference"] < 1e-4
    assert receipt["asked"]["who"] == "the Ollama model"
    assert not (export.folder / ".work").exists()

    (export.path / "chat.yaml").write_text("split: false\n")
    talk = subprocess.run(
        [
            sys.executable,
            ROOT / "scripts/tools/chat.py",
            export.folder,
            "--config",
            export.path / "chat.yaml",
            "--llm",
            export.path / "llm.yaml",
        ],
        env=CLEAN,
        input="在吗？\n\n吃了吗\n/reset\n再见\n",
        capture_output=True,
        encoding="utf-8",
    )
    assert (talk.returncode, talk.stderr) == (0, "")
    asked = [request.body for request in ollama.requests if request.path == "/api/chat"][1:]
    assert [len(body["messages"]) for body in asked] == [1, 3, 1]
    assert asked[1]["messages"][0] == {"role": "user", "content": "在吗？"}
    assert asked[1]["messages"][1]["content"] in talk.stdout and "options" not in asked[0]

    shutil.rmtree(export.folder)  # make clean-export
    (export.path / "export.yaml").write_text("fixed_system: true\nnum_ctx: 300\nquantize: f16\ntemperature: 0\n")
    assert export.run().returncode == 0, "ours is still ours"
    made = ollama.created[NAME]
    assert made["template"].startswith('{{ $system := "\\U00004f60') and ".System" not in made["template"]
    assert made["parameters"] == {**PARAMETERS, "num_ctx": 300, "temperature": 0.0} and made["quantize"] == "f16"

    ollama.models[NAME] = "somebody else's"
    before = len(ollama.requests)
    assert export.complaint() == (
        "Ollama already has a model huiyin-10002 which this pipeline did not make; "
        "rename it (ollama cp) and remove it: ollama rm huiyin-10002"
    )
    assert [request.path for request in ollama.requests[before:]] == ["/api/tags"]
    (export.path / "exported.ollama").unlink()
    gone = run_script(
        "tools/chat", export.folder, "--config", export.path / "chat.yaml", "--llm", export.path / "llm.yaml"
    )
    assert gone.stderr == "chat.py: the Ollama model huiyin-10002 is not the one that export made; make export again\n"


# ---- One line each


def test_ollama_does_not_answer(export):
    export.url = "http://127.0.0.1:9"
    assert export.complaint() == (
        "no Ollama answers at URL; start it (ollama serve), or set url or backend in llm.yaml"
    )


def test_a_stream_that_ends_in_an_error_on_status_200(export, ollama):
    def fail(body):
        raise Refusal(500, "write /root/.ollama/models/blobs/x: no space left on device")  # the status is out already

    ollama.before_create = fail
    assert export.complaint() == (
        "Ollama at URL: huiyin-10002: write /root/.ollama/models/blobs/x: no space left on device"
    )
    assert NAME not in ollama.models


def test_no_room_on_the_disk(tmp_path, monkeypatch):
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(huiyin.training.base.shutil, "disk_usage", lambda folder: usage(9 * GIB, 0, 4 * GIB))
    check_room(tmp_path, 4 * GIB, None)
    with pytest.raises(UserError) as error:
        check_room(tmp_path, GIB, tmp_path)
    assert str(error.value) == (
        "the merged model with Ollama's copies of it needs 4.3 GiB of disk and 4.0 GiB are free; make room"
    )
    with pytest.raises(UserError) as error:
        check_room(tmp_path, 5 * GIB, None)
    assert str(error.value) == "the merged model needs 5.0 GiB of disk and 4.0 GiB are free; make room"


def test_no_room_in_memory(capsys):
    Memory = namedtuple("Memory", "available")
    Swap = namedtuple("Swap", "free")
    check_memory(3 * GIB, Memory(4 * GIB), Swap(GIB))
    assert capsys.readouterr().out == "export: merging needs about 4.5 GiB of RAM, 5.0 GiB are free\n"
    with pytest.raises(UserError) as error:
        check_memory(3 * GIB, Memory(4 * GIB), Swap(0))
    assert str(error.value) == (
        "merging needs 4.5 GiB of RAM and 4.0 GiB are free; close programs, or in WSL, which gets half of the "
        "machine's, set memory= in .wslconfig"
    )


def test_an_architecture_ollama_does_not_know(export):
    export.base_is(architectures=["Qwen3ForCausalLM"])
    assert export.complaint() == (
        "base/config.json: Ollama cannot import Qwen3ForCausalLM; take a Qwen2.5 or Llama 3 model as "
        "model_name_or_path in train.yaml, or set another backend than ollama in llm.yaml and serve the merged model "
        "in a way of your own"
    )


def test_an_architecture_ollama_does_not_know_is_not_even_trained(export):
    export.change("base/config.json", architectures=["Qwen3ForCausalLM"])
    (export.path / "train.yaml").write_text(f"model_name_or_path: {export.path}/base\ntemplate: qwen\n")
    (export.path / "llm.yaml").write_text(f"url: {export.url}\n")
    done = run_script(
        "train",
        export.target / "generated",
        "--config",
        export.path / "train.yaml",
        "--preflight",
        "config/preflight.yaml",
        "--gpu",
        "none",
        "--cache",
        export.path / "cache",
        "--llm",
        export.path / "llm.yaml",
        "--out",
        export.path / "again",
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"train.py: {export.path}/base/config.json: Ollama cannot import Qwen3ForCausalLM; take a Qwen2.5 or Llama 3 "
        "model as model_name_or_path in train.yaml, or set another backend than ollama in llm.yaml and serve the "
        "merged model in a way of your own\n"
    )
    assert not (export.path / "again").exists()


def test_a_template_nobody_has_tested(export):
    export.change("trained/train.yaml", template="gemma2")
    assert export.complaint() == (
        "template gemma2 in train.yaml: only of qwen and llama3 is it known that Ollama asks as the training did; take "
        "a base model with one of them, or set another backend than ollama in llm.yaml and serve the merged model in a "
        "way of your own"
    )


def test_no_adapter(export):
    (export.path / "trained/adapter/adapter_model.safetensors").unlink()
    assert export.complaint() == "trained/adapter/adapter_model.safetensors: no such file; `make train` makes it"


def test_another_base_model_than_that_of_the_training(export):
    export.change("base/config.json", rms_norm_eps=0.1)
    assert export.complaint() == (
        "base: config.json changed or gone since the training; bring the base model back, or train again (make "
        "clean-train)"
    )


# ---- Is it the trained model?


def test_a_merged_model_that_differs(demo, tmp_path):
    """One changed weight is seen, whose 1e-4 of the loss a rounded model could have."""
    target, base = demo[0] / "data/demo/10002", demo[0] / "data/tiny/tiny-qwen2"
    merged = shutil.copytree(target / "exported/merged", tmp_path / "merged")
    weights = load_file(merged / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"] * np.float32(1.01)
    save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError) as error:
        check_merge(
            base,
            target / "trained/adapter",
            merged,
            target / "generated",
            "在吗？",
            "",
            tmp_path,
            environment("none", tmp_path, tmp_path),
        )
    said = str(error.value)
    assert said.startswith("the merged model is not the trained one: its mean loss on 11 rows is ")
    assert said.endswith(", more than 0.01% apart; export again")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "model.safetensors", "Modelfile"])
def test_a_file_that_the_merge_has_lost(demo, tmp_path, name):
    merged = shutil.copytree(demo[0] / "data/demo/10002/exported/merged", tmp_path / "merged")
    (merged / "Modelfile").touch()
    check_merged(merged)
    (merged / name).unlink()
    with pytest.raises(UserError) as error:
        check_merged(merged)
    assert str(error.value) == f"{merged}/{name}: no such file; LLaMA-Factory should have written it; export again"


def test_the_tolerance_follows_the_type_of_the_weights():
    assert check_loss(2.0, 2.0001, "float32", 50) == pytest.approx(5e-5)
    assert check_loss(2.0, 2.019, "bfloat16", 50) == pytest.approx(0.0095)
    for trained, merged, kind in ((2.0, 2.001, "float32"), (2.0, 1.97, "bfloat16"), (2.0, float("nan"), "bfloat16")):
        with pytest.raises(UserError, match="the merged model is not the trained one"):
            check_loss(trained, merged, kind, 50)


def test_replies_are_shown_on_a_terminal_and_kept_nowhere(export):
    (export.path / "alone.yaml").write_text("backend: embedded\n")
    arguments = [*export.arguments(), "--llm", export.path / "alone.yaml"]
    ours, theirs = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, ROOT / "scripts/export.py", *map(str, arguments)],
        cwd=ROOT,
        env=CLEAN,
        stdout=theirs,
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    said = b""
    try:
        while piece := os.read(ours, 10_000):
            said += piece
    except OSError:  # the other end is closed
        pass
    running.communicate()
    assert running.returncode == 0
    lines = said.decode().splitlines()
    replies = [line for line in lines if ": trained '" in line]
    assert len(replies) == 5
    assert lines[-1] == (
        "export: no Ollama here; where there is one, this makes the model: ollama create huiyin-10002 "
        f"--quantize q8_0 -f {export.folder}/Modelfile"
    )
    rows = json.loads((export.target / "generated/alpaca_eval.json").read_text(encoding="utf-8"))[-5:]
    kept = json.dumps(export.receipt(), ensure_ascii=False)
    assert [row["instruction"] for row in rows if f"'{row['instruction']}'" in kept] == []
    assert export.receipt()["asked"]["who"] == "the merged model, loaded once" and "ollama" not in export.receipt()


# ---- What Ollama needs


@pytest.mark.parametrize(
    ("rope", "wanted"),
    [
        ({"rope_theta": 5.0}, {"rope_theta": 5.0}),
        ({"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}}, {"rope_theta": 5.0}),
        (
            {"rope_parameters": {"rope_theta": 5.0, "rope_type": "yarn", "factor": 4.0}},
            {"rope_theta": 5.0, "rope_scaling": {"rope_type": "yarn", "type": "yarn", "factor": 4.0}},
        ),
        (
            {"rope_theta": 5.0, "rope_scaling": {"type": "yarn", "factor": 4.0}},
            {"rope_theta": 5.0, "rope_scaling": {"rope_type": "yarn", "type": "yarn", "factor": 4.0}},
        ),
    ],
)
def test_rope_is_at_the_top_level(tmp_path, rope, wanted):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(rope))
    flatten_rope(config, needed=True)
    values = json.loads(config.read_text(encoding="utf-8"))
    assert {name: value for name, value in values.items() if name != "rope_parameters"} == wanted


def test_no_rope_at_all(tmp_path):
    config = tmp_path / "config.json"
    config.write_text("{}")
    flatten_rope(config, needed=False)
    with pytest.raises(UserError) as error:
        flatten_rope(config, needed=True)
    assert str(error.value) == f"{config}: no rope_theta; this base model cannot be served by Ollama"


@pytest.mark.parametrize(("row", "kind"), [(512, "q4_K_M"), (896, "q8_0"), (100, "f16")])
def test_quantize_goes_by_the_length_of_the_rows(tmp_path, row, kind):
    weights = {"a": np.zeros((4, 1024), np.float32), "b": np.zeros((4, row), np.float32), "c": np.zeros(7, np.float32)}
    save_file(weights, tmp_path / "model.safetensors")
    assert choose_quantize("auto", tmp_path) == kind
    assert choose_quantize("q8_0", tmp_path) == "q8_0"
