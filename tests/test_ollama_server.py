"""The stand-in for Ollama behaves as Ollama's documentation says."""

import hashlib
import json

import pytest
import requests

from ollama_server import OllamaServer
from scripts.demo.tiny import write_hugging_face

MODEL = "qwen2.5:14b"
SCHEMA = {
    "type": "object",
    "properties": {"answers": {"enum": ["1", "2", "none"]}, "why": {"type": "string", "maxLength": 20}},
    "required": ["answers", "why"],
    "additionalProperties": False,
}


@pytest.fixture
def server(gguf):
    with OllamaServer(gguf, [MODEL]) as server:
        yield server


def post(server, path, **body):
    return requests.post(server.url + path, json=body)


def chat(server, text="在吗？", model=MODEL, stream=False, options=None, **fields):
    options = {"num_predict": 200, "seed": 1, "temperature": 0.8, **(options or {})}
    messages = [{"role": "user", "content": text}]
    return post(server, "/api/chat", model=model, messages=messages, stream=stream, options=options, **fields)


def upload(server, content):
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert requests.post(f"{server.url}/api/blobs/{digest}", data=content).status_code in (200, 201)
    return digest


def statuses(answer):
    return [event.get("status") or event for event in map(json.loads, answer.iter_lines())]


def test_the_server_reports_its_models(server):
    [model] = requests.get(server.url + "/api/tags").json()["models"]
    assert model["name"] == MODEL and len(model["digest"]) == 64
    assert post(server, "/api/show", model=MODEL).json()["model_info"]["qwen2.context_length"] == 32768


def test_answers_follow_the_schema_and_are_the_same_again(server):
    def answers():
        return [chat(server, f"{number} 谁答谁？", format=SCHEMA).json() for number in range(20)]

    first, again = answers(), answers()
    for answer in first:
        assert (answer["done"], answer["done_reason"]) == (True, "stop")
        content = json.loads(answer["message"]["content"])
        assert content.keys() == {"answers", "why"} and content["answers"] in ("1", "2", "none")
        assert answer["prompt_eval_count"] > 0 and answer["eval_count"] > 0
    assert [answer["message"] for answer in first] == [answer["message"] for answer in again]
    assert len(server.requests) == 40 and server.requests[0].body["format"] == SCHEMA
    assert server.loads == [(MODEL, 4096)]


def test_free_text_ends_by_itself_and_is_the_same_as_a_stream(server):
    whole = chat(server).json()
    assert whole["done_reason"] == "stop" and whole["message"]["content"]
    events = [json.loads(line) for line in chat(server, stream=True).iter_lines()]
    assert "".join(event["message"]["content"] for event in events) == whole["message"]["content"]
    assert [event["done"] for event in events] == [False] * (len(events) - 1) + [True]


def test_an_answer_cut_at_its_limit_has_the_reason_length(server):
    answer = chat(server, format=SCHEMA, options={"num_predict": 3}).json()
    assert (answer["done_reason"], answer["eval_count"]) == ("length", 3)


@pytest.mark.parametrize(
    "status, words, change",
    [
        (404, "model 'nobody' not found", {"model": "nobody"}),
        (400, "does not support thinking", {"think": True}),
        (400, "$ref", {"format": {"$ref": "#/nowhere"}}),
        (400, "context size (100 tokens)", {"text": "长" * 200, "options": {"num_ctx": 100}}),
        (400, "context size (32768 tokens)", {"text": "长" * 40000, "options": {"num_ctx": 32768}}),
    ],
)
def test_a_wrong_request_is_refused_in_ollamas_words(server, status, words, change):
    answer = chat(server, **change)
    assert answer.status_code == status and words in answer.json()["error"]


def test_a_request_that_is_not_json_is_refused(server):
    for content in ("{", "", "[]"):
        answer = requests.post(server.url + "/api/chat", data=content)
        assert answer.status_code == 400 and answer.json()["error"]
    assert requests.get(server.url + "/api/nothing").status_code == 404
    assert [request.body for request in server.requests] == [None, None, [], None]


def test_a_model_is_loaded_by_a_request_and_unloaded_by_keep_alive_0(server):
    def loaded():
        models = requests.get(server.url + "/api/ps").json()["models"]
        return [(model["name"], model["context_length"]) for model in models]

    assert loaded() == []
    options = {"num_ctx": 2048}
    empty = post(server, "/api/chat", model=MODEL, messages=[], options=options).json()
    assert (empty["message"]["content"], empty["done_reason"]) == ("", "load")
    assert loaded() == [(MODEL, 2048)]
    chat(server)
    assert loaded() == [(MODEL, 4096)]
    assert post(server, "/api/generate", model=MODEL, keep_alive=0).json()["done_reason"] == "unload"
    assert loaded() == []


def test_a_model_is_created_from_uploaded_files(server, tmp_path):
    folder = write_hugging_face(tmp_path / "model")
    files = {file.name: upload(server, file.read_bytes()) for file in folder.iterdir()}
    digest = files["config.json"]
    assert server.blobs[digest] == (folder / "config.json").read_bytes()
    assert requests.head(f"{server.url}/api/blobs/{digest}").status_code == 200
    assert requests.head(f"{server.url}/api/blobs/sha256:{'0' * 64}").status_code == 404
    assert requests.post(f"{server.url}/api/blobs/sha256:{'0' * 64}", data=b"x").json() == {"error": "digest mismatch"}

    parameters = {"num_ctx": 2048, "stop": ["<|im_end|>"]}
    texts = {"system": "你是群友", "template": "{{ .Prompt }}"}
    answer = post(server, "/api/create", model="huiyin-1", files=files, quantize="q8_0", parameters=parameters, **texts)
    assert statuses(answer)[-1] == "success"
    assert server.created["huiyin-1:latest"]["config"]["rope_theta"] == 1_000_000
    plain, made = chat(server).json(), chat(server, model="huiyin-1").json()
    assert made["prompt_eval_count"] > plain["prompt_eval_count"], "the system text is part of the prompt"
    assert server.loaded["huiyin-1:latest"] == 2048


def test_files_that_ollama_cannot_convert_are_refused(server):
    qwen3 = upload(server, b'{"architectures": ["Qwen3ForCausalLM"]}')
    weights = upload(server, b"weights")
    for files, words in [
        ({"config.json": qwen3, "model.safetensors": weights}, 'unsupported architecture "Qwen3ForCausalLM"'),
        ({"config.json": qwen3}, "no safetensors"),
        ({"model.gguf": weights}, "invalid file magic"),
        ({"model.safetensors": weights}, "config.json"),
        ({"model.safetensors": f"sha256:{'0' * 64}"}, "not found"),
        ({}, "neither"),
    ]:
        answer = post(server, "/api/create", model="new", files=files)
        assert answer.status_code == 200 and words in statuses(answer)[-1]["error"]
        assert post(server, "/api/create", model="new", files=files, stream=False).status_code >= 400
    assert server.created == {}
