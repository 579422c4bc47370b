"""export: the merged model is the trained one, what Ollama is given, and whose model is replaced."""

import hashlib
import io
import itertools
import json
import shutil
import stat
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import huiyin.training.base
from forked import Forked, run_forking
from helpers import run_script
from huiyin.common.errors import UserError
from huiyin.llm.ollama import Ollama
from huiyin.serving import process
from huiyin.serving.finished import Settings
from huiyin.serving.gguf import ADVICE
from huiyin.serving.ollama_limits import choose_quantize, flatten_rope
from huiyin.serving.templates.known import FORMATS, KNOWN
from huiyin.training.llamafactory import environment
from huiyin.training.memory import GIB, check_memory
from huiyin.training.template import Encoding
from llm_folder import succeeded
from ollama_server import OllamaServer, Refusal
from scripts import export as export_script
from scripts.export import (
    BEING_CREATED,
    check_names,
    check_room,
    choose_context,
    compare,
    create,
    differences,
    merge,
)

NAME, PREVIOUS = "huiyin-10002:latest", "huiyin-10002:previous"
SAMPLING = {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "repeat_penalty": 1.0}
PARAMETERS = {"stop": ["<|im_end|>"], "num_ctx": 512, "num_predict": 256, **SAMPLING}
ALTERNATIVE = "or say ollama: none in export.yaml and serve the merged model in a way of your own"
NOT_SERVED = (
    "base/config.json: Ollama cannot import Phi3ForCausalLM; take a Qwen2.5, Qwen3, Llama 3 or Gemma 3 model as "
    f"model_name_or_path in train.yaml, {ALTERNATIVE}"
)


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Export:
    """A folder with the demo's adapter, to be exported to the test server."""

    def __init__(self, demo, path, ollama):
        self.path, self.folder, self.target = path, path / "exported", demo[0] / "data/demo/10002"
        self.ollama, self.url, self.settings = ollama, ollama.url, ""
        shutil.copytree(self.target / "trained", path / "trained")
        shutil.copytree(demo[0] / "data/tiny/tiny-qwen2", path / "base")
        self.change("trained/train.yaml", model_name_or_path=str(path / "base"))
        (path / "chat.yaml").write_text("split: false\n")
        self.system = (self.target / "generated/system.txt").read_text(encoding="utf-8")

    def arguments(self):
        (self.path / "export.yaml").write_text(f"ollama: {self.url}\n{self.settings}")
        given = [self.path / "trained", "--generated", self.target / "generated", "--name", "huiyin-10002"]
        own = ["--config", self.path / "export.yaml", "--cache", self.path / "cache", "--out", self.folder]
        return [*given, *own]

    def run(self):
        return run_forking("export", *self.arguments())

    def error(self):
        """Return the one line of a run that fails; it leaves nothing behind."""
        done = self.run()
        assert done.returncode == 1
        assert not self.folder.exists() or list(self.folder.iterdir()) == []
        [line] = done.stderr.splitlines()
        return line.removeprefix("export.py: ").replace(f"{self.path}/", "").replace(self.url, "URL")

    def receipt(self):
        return read_json(self.folder / "receipt.json")

    def asked(self):
        return [request.body for request in self.ollama.requests if request.path == "/api/chat"]

    def change(self, name, **values):
        (self.path / name).write_text(json.dumps({**read_json(self.path / name), **values}))

    def base_is(self, **values):
        """Change the base model, and the receipt of the training with it."""
        self.change("base/config.json", **values)
        base_model = read_json(self.path / "trained/receipt.json")["base_model"]
        base_model["sha256"]["config.json"] = sha256(self.path / "base/config.json")
        self.change("trained/receipt.json", base_model=base_model)


@pytest.fixture
def export(demo, tmp_path, ollama):
    return Export(demo, tmp_path, ollama)


@pytest.fixture(scope="module")
def exported(demo, tmp_path_factory, gguf):
    """A finished export, with the server that got the model."""
    with OllamaServer(gguf, []) as ollama:
        export = Export(demo, tmp_path_factory.mktemp("export"), ollama)
        export.settings = "gguf: true\n"
        assert "create: success" in succeeded(export.run()).stdout.splitlines()
        yield export


def test_ollama_is_given_what_its_api_asks_for(exported):
    made = exported.ollama.created[NAME]
    assert set(made) - {"config"} == {"model", "files", "quantize", "template", "system", "parameters"}
    assert made["model"] == "huiyin-10002"
    merged = [path for path in (exported.folder / "merged").iterdir() if path.suffix in (".json", ".safetensors")]
    assert made["files"] == {path.name: f"sha256:{sha256(path)}" for path in merged}
    names = "config generation_config tokenizer tokenizer_config".split()
    assert {"model.safetensors", *(f"{name}.json" for name in names)} <= set(made["files"])
    assert made["quantize"] == "q8_0"  # the tiny model's rows are 64 long
    assert made["system"] == exported.system
    assert made["config"]["rope_theta"] == 1_000_000
    rows = [row for name in ("alpaca", "alpaca_eval") for row in read_json(exported.target / f"generated/{name}.json")]
    num_ctx = choose_context(Settings(), 512, Encoding(FORMATS["qwen"], exported.path / "base"), exported.system, rows)
    assert made["parameters"] == {**PARAMETERS, "num_ctx": num_ctx}
    modelfile = (exported.folder / "Modelfile").read_text(encoding="utf-8")
    assert f'TEMPLATE """{made["template"]}"""' in modelfile and f'SYSTEM """{exported.system}"""' in modelfile


def test_a_finished_export_is_repeated_only_where_ollama_lacks_its_model(exported, monkeypatch):
    def make_model(*arguments):
        raise UserError("begun")

    monkeypatch.setattr(export_script, "make_model", make_model)
    assert succeeded(exported.run()).stdout == "export: nothing has changed\n"
    monkeypatch.delitem(exported.ollama.models, NAME)
    assert exported.run().stderr == "export.py: begun\n"
    monkeypatch.setattr(export_script, "find_ollama", lambda *arguments: None)  # none is there to have it
    assert succeeded(exported.run()).stdout == "export: nothing has changed\n"


def test_the_receipt_is_the_model_card(exported):
    receipt = exported.receipt()
    trained = read_json(exported.path / "trained/receipt.json")
    assert receipt["ollama"] == {"name": "huiyin-10002", "digest": exported.ollama.models[NAME]}
    assert (exported.path / "exported.ollama").read_text() == exported.ollama.models[NAME]
    assert receipt["base_model"] == {**trained["base_model"], "folder": str(exported.path / "base")}
    assert receipt["dataset"] == trained["inputs"] and receipt["losses"] == trained["results"]
    assert receipt["losses"]["eval_loss"] < receipt["losses"]["base_eval_loss"]
    assert receipt["training"] == {"settings": trained["settings"], "versions": trained["versions"]}
    assert receipt["check"]["rows"] == 11
    weights = load_file(exported.folder / "merged/model.safetensors").values()
    assert {str(tensor.dtype) for tensor in weights} == {receipt["merged_as"]}
    assert receipt["gguf"].pop("difference") < 1.0
    assert receipt["gguf"] == {"type": "q8_0", "for_ollama": False, "prompts": 5}
    for losses in ("trained_loss", "merged_loss", "difference"):
        assert set(receipt["check"][losses]) == {"words", "end"}
    assert max(receipt["check"]["difference"].values()) <= 1e-4
    asked = read_json(exported.folder / "asked.json")
    assert asked["who"] == "the Ollama model" and asked.keys() == {"who", "question", "reply"}
    assert stat.S_IMODE((exported.folder / "asked.json").stat().st_mode) == 0o600
    assert "asked" not in receipt and set(receipt["outputs"]) == {"merged", "Modelfile", "asked.json", "model.gguf"}
    assert stat.S_IMODE((exported.folder / "model.gguf").stat().st_mode) == 0o600
    assert exported.asked()[0]["model"] == "huiyin-10002"
    assert not (exported.folder / ".work").exists()


def test_the_exported_model_can_be_talked_to(exported, monkeypatch):
    before = len(exported.asked())
    monkeypatch.setattr(sys, "stdin", io.StringIO("在吗？\n\n吃了吗\n/reset\n再见\n"))
    options = ["--config", exported.path / "chat.yaml", "--export", exported.path / "export.yaml"]
    talk = run_script("tools/chat", exported.folder, "--generated", exported.target / "generated", *options)
    assert (talk.returncode, talk.stderr) == (0, "")
    bodies = exported.asked()[before:]
    assert [len(body["messages"]) for body in bodies] == [1, 3, 1]
    assert bodies[1]["messages"][0] == {"role": "user", "content": "在吗？"}
    assert bodies[1]["messages"][1]["content"] in talk.stdout and "options" not in bodies[0]


def test_a_model_of_ours_is_replaced_and_replies_are_printed_on_a_terminal_only(export, ollama, monkeypatch):
    ollama.models[NAME] = "made before"
    (export.path / "exported.ollama").write_text("made before")
    export.settings = "fixed_system: true\nnum_ctx: 400\nquantize: f16\ntemperature: 0\n"
    monkeypatch.setattr(io, "StringIO", Terminal)
    lines = succeeded(export.run()).stdout.splitlines()
    made = ollama.created[NAME]
    assert made["template"].startswith('{{ $system := "\\U00004f60') and ".System" not in made["template"]
    assert made["parameters"] == {**PARAMETERS, "num_ctx": 400, "temperature": 0.0} and made["quantize"] == "f16"
    assert (export.path / "exported.ollama").read_text() == ollama.models[NAME] != "made before"
    assert ollama.models[PREVIOUS] == export.receipt()["ollama"]["previous"] == "made before"

    assert len([line for line in lines if ": trained '" in line]) == 5
    rows = read_json(export.target / "generated/alpaca_eval.json")[-5:]
    kept = json.dumps(export.receipt(), ensure_ascii=False)
    assert [row["instruction"] for row in rows if f"'{row['instruction']}'" in kept] == []


def test_without_ollama_the_command_is_printed_that_creates_the_model(demo):
    project, output = demo
    receipt = read_json(project / "data/demo/10002/exported/receipt.json")
    asked = read_json(project / "data/demo/10002/exported/asked.json")
    assert asked["who"] == "the merged model, loaded once" and "ollama" not in receipt
    assert f"It said: {asked['reply']!r}\n" in output
    assert (
        "export: no Ollama model was created; where Ollama runs, this creates it: ollama create huiyin-10002 "
        "--quantize q8_0 -f data/demo/10002/exported/Modelfile\n"
    ) in output


# ---- One line each


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
    receipt = read_json(folder / "receipt.json")
    with pytest.raises(UserError) as error:
        create(
            Ollama(ollama.url, "huiyin-10002", 512, 9),
            folder / "merged",
            FORMATS["qwen"],
            "",
            receipt,
            tmp_path / "digest",
        )
    assert str(error.value) == (
        f"Ollama at {ollama.url}: huiyin-10002: write /root/.ollama/models/blobs/x: no space left on device"
    )
    assert NAME not in ollama.models and (tmp_path / "digest").read_text() == BEING_CREATED


class Killed(BaseException):
    """What a kill is to the code that it ends."""


def ended(monkeypatch, owner, name, call):
    """Kill at the `call`-th call of `owner`.`name`, before it does anything."""
    calls, real = itertools.count(1), getattr(owner, name)

    def killed(*arguments, **options):
        if next(calls) == call:
            raise Killed
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, killed)


@pytest.fixture
def creating(tmp_path, ollama):
    """Check the name and create a model as export does; returns its digest. In place of the weights there are few."""
    merged, digest_file = tmp_path / "merged", tmp_path / "exported.ollama"
    merged.mkdir()
    (merged / "config.json").write_text('{"architectures": ["Qwen2ForCausalLM"]}')
    (merged / "model.safetensors").write_bytes(b"weights")
    receipt = {"quantize": "f16", "fixed_system": False, "parameters": {}}

    def creating(system="你是甲"):
        named = Ollama(ollama.url, "huiyin-10002", 512, 9)
        check_names(named, digest_file)
        return create(named, merged, FORMATS["qwen"], system, receipt, digest_file)["digest"]

    return creating


KILLS = [
    ("write_text", Path, 1),  # before the file is marked
    ("replace", Path, 1),
    ("create", Ollama, 1),  # it is marked, and Ollama has done nothing
    ("upload", Ollama, 2),
    ("identity", Ollama, 1),  # created, and its digest is not known
    ("write_text", Path, 2),
    ("replace", Path, 2),
    ("talk", Ollama, 1),  # the digest is written, and no receipt yet
]


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize(("name", "owner", "call"), KILLS)
def test_an_export_killed_at_any_moment_can_be_run_again(creating, ollama, earlier, removed, name, owner, call):
    if earlier:
        creating("你是乙")
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(Killed):
        ended(monkeypatch, owner, name, call)
        creating()
        "".join(Ollama(ollama.url, "huiyin-10002").talk([{"role": "user", "content": "在吗"}]))
    if removed:
        ollama.models.pop(NAME, None)
    assert creating() == ollama.models[NAME]
    ollama.models[NAME] = "somebody else's, after that"
    with pytest.raises(UserError, match="which this pipeline did not make"):
        creating()


def test_the_model_of_the_last_version_is_kept_until_the_next_one(creating, ollama):
    first, second = creating("你是甲"), creating("你是乙")
    assert (ollama.models[NAME], ollama.models[PREVIOUS]) == (second, first)
    third = creating("你是丙")
    assert (ollama.models[NAME], ollama.models[PREVIOUS]) == (third, second)
    ollama.models[NAME] = second  # ollama cp huiyin-10002:previous huiyin-10002
    assert creating("你是丁") == ollama.models[NAME] and ollama.models[PREVIOUS] == second
    ollama.models[PREVIOUS] = "somebody else's"
    with pytest.raises(UserError, match="a model huiyin-10002:previous which this pipeline did not make"):
        creating()


KILLS_WHILE_KEPT = [("copy", Ollama, 1), *((name, Path, call) for name in ("write_text", "replace") for call in (3, 4))]


@pytest.mark.parametrize(("name", "owner", "call"), KILLS_WHILE_KEPT + KILLS)
def test_the_last_version_is_kept_wherever_an_export_is_killed(creating, ollama, name, owner, call):
    creating("你是乙")
    last = creating("你是甲")
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(Killed):
        ended(monkeypatch, owner, name, call)
        creating("你是丙")
        "".join(Ollama(ollama.url, "huiyin-10002").talk([{"role": "user", "content": "在吗"}]))
    if name != "talk":  # that one was done
        creating("你是丙")
        assert ollama.models[PREVIOUS] == last


def test_an_emptied_digest_is_that_of_our_model(creating, ollama, tmp_path):
    creating()
    (tmp_path / "exported.ollama").write_text("")
    assert creating() == ollama.models[NAME]


def test_a_disk_without_room_is_one_line(tmp_path, monkeypatch):
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(huiyin.training.base.shutil, "disk_usage", lambda folder: usage(9 * GIB, 0, 4 * GIB))
    check_room(tmp_path, 4 * GIB, None)
    for size, store, gguf, what in (
        (2 * GIB, tmp_path, False, "the merged model with Ollama's copies of it needs 6.4 GiB"),
        (2 * GIB, tmp_path, True, "the merged model with its GGUF file with Ollama's copies of it needs 8.4 GiB"),
        (5 * GIB, None, False, "the merged model needs 5.0 GiB"),
    ):
        with pytest.raises(UserError) as error:
            check_room(tmp_path, size, store, gguf)
        assert str(error.value) == f"{what} of disk and 4.0 GiB are free; make room"


def test_memory_is_saved_if_there_is_little_and_too_little_is_one_line(capsys):
    parameters = GIB  # 4 GiB in 32 bits
    assert not check_memory("export", parameters, 2 * GIB, 6 * GIB)
    assert capsys.readouterr().out == "export: comparing the models needs 5.5 GiB of RAM, 6.0 GiB are free\n"
    assert check_memory("export", parameters, 2 * GIB, 5 * GIB)
    saved = "export: so their weights stay as they are stored, which needs 3.5 GiB and is slower"
    assert capsys.readouterr().out.splitlines()[1] == saved
    with pytest.raises(UserError) as error:
        check_memory("export", parameters, 2 * GIB, 3 * GIB)
    assert str(error.value) == (
        "comparing the models needs 3.5 GiB of RAM and 3.0 GiB are free; close programs, or in WSL, which gets half of "
        "the machine's, set memory= in .wslconfig"
    )


REFUSED = [  # (what is changed, the line)
    (
        lambda export: setattr(export, "url", "http://127.0.0.1:9"),
        "no Ollama answers at URL; start it (ollama serve), or change ollama in export.yaml",
    ),
    (lambda export: export.base_is(architectures=["Phi3ForCausalLM"]), NOT_SERVED),
    (
        lambda export: export.base_is(architectures=["Qwen3ForCausalLM"], rope_scaling={"type": "yarn"}),
        f"base/config.json: rope_scaling of the type yarn cannot be written as GGUF; {ADVICE}",
    ),
    (
        lambda export: export.change("trained/train.yaml", template="gemma2"),
        f"template gemma2 in train.yaml: it must be one of {KNOWN}; only for these is it tested that the "
        "finished model is prompted as it was trained",
    ),
    (
        lambda export: export.change("trained/train.yaml", template="qwen3"),
        "an earlier version trained with template qwen3, and taught the empty thought as a part of each reply; train "
        "again (make clean-train)",
    ),
    (
        lambda export: (export.path / "trained/adapter/adapter_model.safetensors").unlink(),
        "trained/adapter/adapter_model.safetensors: no such file; `make train` makes it",
    ),
    (
        lambda export: (export.path / "trained/adapter/adapter_config.json").write_text("{"),
        "trained/adapter: adapter_config.json changed or gone since the training; train again (make clean-train)",
    ),
    (
        lambda export: (export.path / "trained/train.yaml").write_text("a: ["),
        "trained/train.yaml: line 1 is not YAML: expected the node content, but found '<stream end>'; delete "
        "trained/receipt.json, then `make train` makes it",
    ),
    (
        lambda export: export.change("trained/receipt.json", outputs={"adapter": "0"}),
        "trained/receipt.json: not the receipt of a training; `make train` makes it",
    ),
    (
        lambda export: export.change("base/config.json", rms_norm_eps=0.1),
        "base: config.json changed or gone since the training; bring the base model back, or train again (make "
        "clean-train)",
    ),
]


@pytest.mark.parametrize(("change", "line"), REFUSED)
def test_what_cannot_be_exported_is_one_line(export, change, line):
    change(export)
    assert export.error() == line


# ---- Is it the trained model?


def answer(words, end):
    return {"loss": {"words": words, "end": end}, "replies": ["reply"]}


@pytest.mark.parametrize(
    ("ends", "merged_as"),  # the loss of the end mark: trained, and merged in each type tried
    [([2.0, 2.0001], "float16"), ([2.0, 2.1, 2.0], "float32"), ([2.0, 2.1, float("nan")], None)],
)
def test_the_weights_are_in_16_bits_if_no_loss_changes_else_in_32(demo, tmp_path, ends, merged_as):
    adapter, base = demo[0] / "data/demo/10002/trained/adapter", demo[0] / "data/tiny/tiny-qwen2"
    asked, left = [], iter(ends)

    def answers(models, rows, samples, lean):
        asked.extend(folder for folder, _ in models)
        return [answer(2.0, next(left)) for _ in models]

    try:
        result, answered = merge(base, adapter, tmp_path, [{}, {}, {}], {}, answers)
    except UserError as error:
        assert merged_as is None and str(error) == (
            "the merged model is not the trained one: the mean losses on 3 rows, with the adapter and merged, are "
            "words 2.0000 and 2.0000, end 2.0000 and nan, more than 0.01% apart; export again"
        )
    else:
        assert (result["merged_as"], answered) == (merged_as, answer(2.0, ends[-1]))
        assert read_json(tmp_path / "config.json")["torch_dtype"] == merged_as
    assert asked == [base, *[tmp_path] * (len(ends) - 1)]  # the trained model once


def test_a_merged_model_that_differs_has_other_losses(demo, tmp_path, monkeypatch):
    """Asked as export asks, with memory saved: 1 % of the last layer is seen in both losses."""
    target, base = demo[0] / "data/demo/10002", demo[0] / "data/tiny/tiny-qwen2"
    monkeypatch.setattr(process, "Popen", Forked)
    merged = shutil.copytree(target / "exported/merged", tmp_path / "merged")
    weights = load_file(merged / "model.safetensors")
    weights["lm_head.weight"] *= weights["lm_head.weight"].dtype.type(1.01)
    save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})
    rows = read_json(target / "generated/alpaca_eval.json")
    models, variables = [(base, target / "trained/adapter"), (merged, None)], environment("none", tmp_path, tmp_path)
    answers = process.ask(models, [], tmp_path, variables, rows, tokenizer=merged, lean=True)
    check = compare(*answers, rows)
    assert check["rows"] == 11 and min(check["difference"].values()) > 1e-4


def test_differences_are_relative_but_for_very_small_losses():
    found = differences({"words": 2.0, "end": 0.001}, {"words": 2.0001, "end": 0.002})
    assert found == {"words": pytest.approx(5e-5), "end": pytest.approx(0.01)}


def test_the_context_has_room_for_three_exchanges_and_a_reply(demo):
    encoding, system = Encoding(FORMATS["qwen"], demo[0] / "data/tiny/tiny-qwen2"), "你好"
    rows = [{"instruction": "a" * size, "output": "b", "history": [["x" * 99, "y"]]} for size in [*range(1, 21), 500]]

    def tokens(*messages):  # in ChatML
        return len(encoding.ids("".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in messages)))

    least = tokens(("system", system), ("user", ""), ("assistant", "")) + 50
    exchange = tokens(("user", "a" * 20), ("assistant", "b"))
    assert choose_context(Settings(num_predict=50), 64, encoding, system, rows) == least + 3 * exchange
    assert choose_context(Settings(num_predict=50), 512, encoding, system, rows) == 512
    assert choose_context(Settings(num_predict=50, num_ctx=least), 512, encoding, system, rows) == least
    with pytest.raises(UserError) as error:
        choose_context(Settings(num_predict=50, num_ctx=least - 1), 512, encoding, system, rows)
    assert str(error.value) == (
        f"num_ctx {least - 1} in export.yaml: a reply (num_predict 50) and the system prompt need {least} tokens; "
        "raise num_ctx, lower num_predict, or leave num_ctx empty"
    )


# ---- What Ollama needs


YARN = {"rope_theta": 5.0, "rope_scaling": {"rope_type": "yarn", "type": "yarn", "factor": 4.0}}


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_theta": 5.0}, {"rope_theta": 5.0}),
        ({"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}}, {"rope_theta": 5.0}),
        ({"rope_parameters": {"rope_theta": 5.0, "rope_type": "yarn", "factor": 4.0}}, YARN),
        ({"rope_theta": 5.0, "rope_scaling": {"type": "yarn", "factor": 4.0}}, YARN),
    ],
)
def test_rope_is_written_at_the_top_level_of_the_config(tmp_path, rope, expected):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(rope))
    flatten_rope(config, needed=True)
    assert {name: value for name, value in read_json(config).items() if name != "rope_parameters"} == expected


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
