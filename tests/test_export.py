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
from huiyin.llm.ollama import Ollama
from huiyin.serving.ollama_limits import choose_quantize, flatten_rope
from huiyin.serving.template import Prompt
from huiyin.training.llamafactory import environment
from huiyin.training.memory import GIB
from ollama_server import OllamaServer, Refusal
from scripts.export import check_loss, check_memory, check_merge, check_merged, check_room, create

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
ALTERNATIVE = "or say ollama: none in export.yaml and serve the merged model in a way of your own"
NOT_SERVED = (
    "base/config.json: Ollama cannot serve Qwen3ForCausalLM with the chat template of the training; take a Qwen2.5 or "
    f"Llama 3 model as model_name_or_path in train.yaml, {ALTERNATIVE}"
)


class Export:
    """A folder with the demo's adapter, to be exported to the test server."""

    def __init__(self, demo, path, ollama):
        self.path, self.folder, self.target = path, path / "exported", demo[0] / "data/demo/10002"
        self.ollama, self.url, self.settings = ollama, ollama.url, ""
        shutil.copytree(self.target / "trained", path / "trained")
        shutil.copytree(demo[0] / "data/tiny/tiny-qwen2", path / "base")
        used = json.loads((path / "trained/train.yaml").read_text(encoding="utf-8"))
        (path / "trained/train.yaml").write_text(json.dumps({**used, "model_name_or_path": str(path / "base")}))
        (path / "chat.yaml").write_text("split: false\n")
        self.system = (self.target / "generated/system.txt").read_text(encoding="utf-8")

    def arguments(self):
        (self.path / "export.yaml").write_text(f"ollama: {self.url}\n{self.settings}")
        options = {
            "--generated": self.target / "generated",
            "--name": "huiyin-10002",
            "--config": self.path / "export.yaml",
            "--cache": self.path / "cache",
            "--out": self.folder,
        }
        return [self.path / "trained", *(word for option in options.items() for word in option)]

    def run(self):
        return run_script("export", *self.arguments())

    def run_on_terminal(self):
        """Run with a terminal as standard output; return its lines."""
        parent_end, child_end = pty.openpty()
        program = [sys.executable, ROOT / "scripts/export.py", *map(str, self.arguments())]
        with subprocess.Popen(program, cwd=ROOT, env=CLEAN, stdout=child_end) as running:
            os.close(child_end)
            output = b""
            try:
                while piece := os.read(parent_end, 10_000):
                    output += piece
            except OSError:  # the other end is closed
                pass
        os.close(parent_end)
        assert running.returncode == 0
        return output.decode().splitlines()

    def chat(self):
        options = ["--config", self.path / "chat.yaml", "--export", self.path / "export.yaml"]
        program = [sys.executable, ROOT / "scripts/tools/chat.py", self.folder, *options]
        lines = "在吗？\n\n吃了吗\n/reset\n再见\n"
        return subprocess.run(program, env=CLEAN, input=lines, capture_output=True, encoding="utf-8")

    def error(self):
        """Return the one line of a run that fails; it leaves nothing behind."""
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

    def asked(self):
        return [request.body for request in self.ollama.requests if request.path == "/api/chat"]

    def change(self, name, **values):
        path = self.path / name
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}))

    def base_is(self, **values):
        """Change the base model, and the receipt of the training with it."""
        self.change("base/config.json", **values)
        trained = json.loads((self.path / "trained/receipt.json").read_text(encoding="utf-8"))
        digest = hashlib.sha256((self.path / "base/config.json").read_bytes()).hexdigest()
        trained["base_model"]["sha256"]["config.json"] = digest
        (self.path / "trained/receipt.json").write_text(json.dumps(trained))


@pytest.fixture
def export(demo, tmp_path, ollama):
    return Export(demo, tmp_path, ollama)


@pytest.fixture(scope="module")
def exported(demo, tmp_path_factory, gguf):
    """A finished export, with the server that got the model."""
    with OllamaServer(gguf, []) as ollama:
        export = Export(demo, tmp_path_factory.mktemp("export"), ollama)
        done = export.run()
        assert done.returncode == 0, done.stderr
        assert "create: success" in done.stdout.splitlines()
        yield export


def test_ollama_is_given_what_its_api_asks_for(exported):
    made = exported.ollama.created[NAME]
    assert set(made) - {"config"} == {"model", "files", "quantize", "template", "system", "parameters"}
    assert made["model"] == "huiyin-10002"
    merged = {
        path.name: f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path in (exported.folder / "merged").iterdir()
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
    assert made["system"] == exported.system
    assert made["config"]["rope_theta"] == 1_000_000
    assert made["parameters"] == PARAMETERS  # num_ctx is the trained length
    modelfile = (exported.folder / "Modelfile").read_text(encoding="utf-8")
    assert f'TEMPLATE """{made["template"]}"""' in modelfile and f'SYSTEM """{exported.system}"""' in modelfile


def test_the_receipt_is_the_model_card(exported):
    receipt = exported.receipt()
    trained = json.loads((exported.path / "trained/receipt.json").read_text(encoding="utf-8"))
    assert receipt["ollama"] == {"name": "huiyin-10002", "digest": exported.ollama.models[NAME]}
    assert (exported.path / "exported.ollama").read_text() == exported.ollama.models[NAME]
    assert receipt["base_model"] == {**trained["base_model"], "folder": str(exported.path / "base")}
    assert receipt["dataset"] == trained["inputs"] and receipt["losses"] == trained["results"]
    assert receipt["losses"]["eval_loss"] < receipt["losses"]["base_eval_loss"]
    assert receipt["training"] == {"settings": trained["settings"], "versions": trained["versions"]}
    assert receipt["check"]["rows"] == 11 and receipt["check"]["difference"] < 1e-4
    assert receipt["asked"]["who"] == "the Ollama model"
    assert exported.asked()[0]["model"] == "huiyin-10002"
    assert not (exported.folder / ".work").exists()


def test_the_exported_model_can_be_talked_to(exported):
    before = len(exported.asked())
    talk = exported.chat()
    assert (talk.returncode, talk.stderr) == (0, "")
    bodies = exported.asked()[before:]
    assert [len(body["messages"]) for body in bodies] == [1, 3, 1]
    assert bodies[1]["messages"][0] == {"role": "user", "content": "在吗？"}
    assert bodies[1]["messages"][1]["content"] in talk.stdout and "options" not in bodies[0]


def test_a_model_of_ours_is_replaced_and_replies_are_printed_on_a_terminal_only(export, ollama):
    ollama.models[NAME] = "made before"
    (export.path / "exported.ollama").write_text("made before")
    export.settings = "fixed_system: true\nnum_ctx: 300\nquantize: f16\ntemperature: 0\n"
    lines = export.run_on_terminal()
    made = ollama.created[NAME]
    assert made["template"].startswith('{{ $system := "\\U00004f60') and ".System" not in made["template"]
    assert made["parameters"] == {**PARAMETERS, "num_ctx": 300, "temperature": 0.0} and made["quantize"] == "f16"
    assert (export.path / "exported.ollama").read_text() == ollama.models[NAME] != "made before"

    assert len([line for line in lines if ": trained '" in line]) == 5
    rows = json.loads((export.target / "generated/alpaca_eval.json").read_text(encoding="utf-8"))[-5:]
    kept = json.dumps(export.receipt(), ensure_ascii=False)
    assert [row["instruction"] for row in rows if f"'{row['instruction']}'" in kept] == []


def test_without_ollama_the_command_is_printed_that_creates_the_model(demo):
    project, output = demo
    receipt = json.loads((project / "data/demo/10002/exported/receipt.json").read_text(encoding="utf-8"))
    assert receipt["asked"]["who"] == "the merged model, loaded once" and "ollama" not in receipt
    assert (
        "export: no Ollama model was created; where Ollama runs, this creates it: ollama create huiyin-10002 "
        "--quantize q8_0 -f data/demo/10002/exported/Modelfile\n"
    ) in output


# ---- One line each


def test_ollama_that_does_not_answer_is_one_line(export):
    export.url = "http://127.0.0.1:9"
    assert export.error() == ("no Ollama answers at URL; start it (ollama serve), or change ollama in export.yaml")


@pytest.mark.parametrize("digest", [None, "another digest"])
def test_a_model_that_somebody_else_made_is_not_replaced(export, ollama, digest):
    ollama.models[NAME] = "somebody else's"
    if digest:
        (export.path / "exported.ollama").write_text(digest)
    assert export.error() == (
        "Ollama already has a model huiyin-10002 which this pipeline did not make; "
        "rename it (ollama cp) and remove it: ollama rm huiyin-10002"
    )
    assert {request.path for request in ollama.requests} == {"/api/tags"}


def test_an_error_while_ollama_creates_the_model_is_one_line(demo, tmp_path, ollama):
    def fail(body):
        raise Refusal(500, "write /root/.ollama/models/blobs/x: no space left on device")  # the status is sent already

    ollama.before_create = fail
    folder = demo[0] / "data/demo/10002/exported"
    receipt = json.loads((folder / "receipt.json").read_text(encoding="utf-8"))
    prompt = Prompt("", "{{ .System }}", "{{ .Content }}", "{{ .Content }}", [])
    with pytest.raises(UserError) as error:
        create(Ollama(ollama.url, "huiyin-10002", 512, 9), folder / "merged", prompt, "", receipt, tmp_path / "digest")
    assert str(error.value) == (
        f"Ollama at {ollama.url}: huiyin-10002: write /root/.ollama/models/blobs/x: no space left on device"
    )
    assert NAME not in ollama.models and not (tmp_path / "digest").exists()


def test_a_disk_without_room_is_one_line(tmp_path, monkeypatch):
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(huiyin.training.base.shutil, "disk_usage", lambda folder: usage(9 * GIB, 0, 4 * GIB))
    check_room(tmp_path, 4 * GIB, None)
    for size, store, what in (
        (GIB, tmp_path, "the merged model with Ollama's copies of it needs 4.3 GiB"),
        (5 * GIB, None, "the merged model needs 5.0 GiB"),
    ):
        with pytest.raises(UserError) as error:
            check_room(tmp_path, size, store)
        assert str(error.value) == f"{what} of disk and 4.0 GiB are free; make room"


def test_too_little_memory_is_one_line(capsys):
    check_memory(3 * GIB, 5 * GIB)
    assert capsys.readouterr().out == "export: merging needs about 4.5 GiB of RAM, 5.0 GiB are free\n"
    with pytest.raises(UserError) as error:
        check_memory(3 * GIB, 4 * GIB)
    assert str(error.value) == (
        "merging needs 4.5 GiB of RAM and 4.0 GiB are free; close programs, or in WSL, which gets half of the "
        "machine's, set memory= in .wslconfig"
    )


def test_an_architecture_that_ollama_cannot_serve_is_refused(export):
    export.base_is(architectures=["Qwen3ForCausalLM"])
    assert export.error() == NOT_SERVED


def test_an_architecture_that_ollama_cannot_serve_is_refused_before_the_training(export):
    export.change("base/config.json", architectures=["Qwen3ForCausalLM"])
    (export.path / "train.yaml").write_text(f"model_name_or_path: {export.path}/base\ntemplate: qwen\n")
    (export.path / "export.yaml").touch()
    options = {
        "--config": export.path / "train.yaml",
        "--preflight": "config/preflight.yaml",
        "--gpu": "none",
        "--cache": export.path / "cache",
        "--llm": "config/demo/llm.yaml",
        "--export": export.path / "export.yaml",
        "--out": export.path / "again",
    }
    done = run_script("train", export.target / "generated", *(word for option in options.items() for word in option))
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"train.py: {export.path}/{NOT_SERVED}\n")
    assert not (export.path / "again").exists()


def test_a_template_that_is_not_tested_with_ollama_is_refused(export):
    export.change("trained/train.yaml", template="gemma2")
    assert export.error() == (
        "template gemma2 in train.yaml: only for qwen and llama3 is it tested that Ollama prompts the model as the "
        f"training did; take a base model with one of them, {ALTERNATIVE}"
    )


def test_a_missing_adapter_is_one_line(export):
    (export.path / "trained/adapter/adapter_model.safetensors").unlink()
    assert export.error() == "trained/adapter/adapter_model.safetensors: no such file; `make train` makes it"


def test_another_base_model_than_that_of_the_training_is_refused(export):
    export.change("base/config.json", rms_norm_eps=0.1)
    assert export.error() == (
        "base: config.json changed or gone since the training; bring the base model back, or train again (make "
        "clean-train)"
    )


# ---- Is it the trained model?


def test_a_merged_model_that_differs_is_refused(demo, tmp_path):
    """A changed weight is noticed; the loss differs by more than 1e-4, which rounded weights would be allowed."""
    target, base = demo[0] / "data/demo/10002", demo[0] / "data/tiny/tiny-qwen2"
    merged = shutil.copytree(target / "exported/merged", tmp_path / "merged")
    weights = load_file(merged / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"] * np.float32(1.01)
    save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})
    models = [(base, target / "trained/adapter"), (merged, None)]
    question = {"system": "", "history": [], "instruction": "在吗？"}
    variables = environment("none", tmp_path, tmp_path)
    with pytest.raises(UserError) as error:
        check_merge(models, target / "generated", question, tmp_path, variables)
    line = str(error.value)
    assert line.startswith("the merged model is not the trained one: its mean loss on 11 rows is ")
    assert line.endswith(", more than 0.01% apart; export again")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "model.safetensors", "Modelfile"])
def test_a_file_that_the_merge_did_not_write_is_named(demo, tmp_path, name):
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


# ---- What Ollama needs


@pytest.mark.parametrize(
    ("rope", "expected"),
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
def test_rope_is_written_at_the_top_level_of_the_config(tmp_path, rope, expected):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(rope))
    flatten_rope(config, needed=True)
    values = json.loads(config.read_text(encoding="utf-8"))
    assert {name: value for name, value in values.items() if name != "rope_parameters"} == expected


def test_a_base_model_without_rope_is_refused_only_for_ollama(tmp_path):
    config = tmp_path / "config.json"
    config.write_text("{}")
    flatten_rope(config, needed=False)
    with pytest.raises(UserError) as error:
        flatten_rope(config, needed=True)
    assert str(error.value) == f"{config}: no rope_theta; this base model cannot be served by Ollama"


@pytest.mark.parametrize(("row", "kind"), [(512, "q4_K_M"), (896, "q8_0"), (100, "f16")])
def test_the_quantization_depends_on_the_length_of_the_rows(tmp_path, row, kind):
    weights = {"a": np.zeros((4, 1024), np.float32), "b": np.zeros((4, row), np.float32), "c": np.zeros(7, np.float32)}
    save_file(weights, tmp_path / "model.safetensors")
    assert choose_quantize("auto", tmp_path) == kind
    assert choose_quantize("q8_0", tmp_path) == "q8_0"
