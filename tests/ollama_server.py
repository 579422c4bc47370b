"""A stand-in for Ollama: its HTTP API in front of a real llama-server with a tiny model (scripts/demo/tiny.py).

    with OllamaServer(gguf, ["qwen2.5:14b"]) as server:
        ...  # talk to server.url
        assert server.requests[-1].path == "/api/chat"

    python tests/ollama_server.py --gguf data/tiny/tiny.gguf --port 11434 --model qwen2.5:14b

Under every name the tiny model answers: JSON schemas, limits, seeds and errors are real, the words are not.
Not imitated: Ollama's truncation of long prompts (they are always refused), its queue, and conversion of a created
model beyond the checks its converter makes first. Answers are streamed in pieces, but after they are complete.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import xllamacpp

SIZE = 600_000  # bytes of a model
CONTEXT, LOADED_CONTEXT = 32768, 4096  # of the tiny model; of a request that names none
PREDICT = 1000  # where a request sets no limit, which is 10 contexts in Ollama
CONVERTIBLE = {"Qwen2ForCausalLM", "LlamaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Phi3ForCausalLM"}
QUANTIZATIONS = {"Q8_0", "Q4_K_S", "Q4_K_M", "F16", "F32", "BF16"}
PASSED_ON = {"temperature", "top_p", "top_k", "min_p", "seed", "stop", "repeat_penalty"}
DEFAULTS = {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "min_p": 0.0, "seed": -1}


class Request(NamedTuple):
    method: str
    path: str
    body: dict | None  # None: the content was not JSON


class Refusal(Exception):
    """An answer with an error status, or a redirect to `message`; `before_chat` may raise it as well."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class Raw(NamedTuple):
    """The body of a response with status 200, whether it is an answer or not."""

    content: bytes
    length: int  # as the Content-Length has it; if it is too large, the connection seems to drop


def whole(text, **fields):
    """Return the bytes of a whole answer of /api/chat with the content `text`; `fields` replace fields of it."""
    end = {"done": True, "done_reason": "stop", "prompt_eval_count": 1, "eval_count": 1}
    message = {"role": "assistant", "content": text}
    return json.dumps({"model": "any", "created_at": now(), "message": message, **end, **fields}).encode()


# Faults for `before_chat` to raise or return; a hang is its own sleep or wait, a kill its own os.kill.
def too_long():
    raise Refusal(400, "request (5000 tokens) exceeds the available context size (4096 tokens), try increasing it")


def crashed():
    raise Refusal(500, "model runner has unexpectedly stopped")


def busy():
    raise Refusal(503, "server busy, please try again.  maximum pending requests exceeded")


def not_done():
    """What is left when Ollama stops a repetition: status 200, and no done_reason."""
    return exactly(whole('{"answers": "1"}', done=False, done_reason=None))


def cut_off():
    return exactly(whole('{"answers": "1', done_reason="length"))


def cut_json():
    return exactly(whole('{"answers": "1'))


def thinking_aloud():
    return exactly(whole('<think>the first, surely</think>{"answers": "1"}'))


def no_json():
    return exactly(b"<html>proxy error</html>")


def dropped():
    """The connection ends in the middle of the answer."""
    return Raw(whole('{"answers": "1"}')[:60], 500)


def exactly(content):
    return Raw(content, len(content))


class OllamaServer:
    """Serves while used as a context manager.

    `requests`: each Request, in order. `blobs`: {digest: bytes}. `created`: {model: body of /api/create, with
    "config", the content of config.json}. `loaded`: {model: num_ctx}. `loads`: each (model, num_ctx) that Ollama would
    have loaded. `before_chat(k, body)` is called before the k-th chat (from 1) is answered; it may count, wait, kill
    the client or raise a Refusal. If it returns a text, that is the answer in place of the model's; a Raw is sent as it
    is. `before_create(body)` is called while a model is converted; it may raise a Refusal.
    """

    def __init__(self, gguf, models, host="127.0.0.1", port=0, parallel=1):
        params = xllamacpp.CommonParams()
        params.model.path = str(gguf)
        params.n_ctx, params.n_parallel = CONTEXT * parallel, parallel
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1  # a tiny model is not faster with more
        params.warmup, params.verbosity = False, -1
        self.llama = xllamacpp.Server(params)
        self.models = {tagged(name): digest_of(name.encode()) for name in models}
        self.requests, self.blobs, self.created, self.loaded, self.loads = [], {}, {}, {}, []
        self.before_chat = lambda k, body: None
        self.before_create = lambda body: None
        self.on_gpu = 1.0  # part of a loaded model
        self.chats, self.lock = itertools.count(1), threading.Lock()
        self.http = ThreadingHTTPServer((host, port), Handler)
        self.http.daemon_threads = (
            False  # closing waits for them: one that is left inside llama.cpp crashes the process
        )
        self.http.ollama = self
        self.url = f"http://{host}:{self.http.server_port}"

    def __enter__(self):
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    # What each path answers: a dict, or an iterator of dicts for a stream.

    def version(self, body):
        return {"version": "0.32.9"}

    def tags(self, body):
        return {"models": [self.describe(name) for name in self.models]}

    def ps(self, body):
        expires = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
        state = {"size_vram": int(SIZE * self.on_gpu), "expires_at": expires}
        loaded = dict(self.loaded).items()
        return {"models": [{**self.describe(name), **state, "context_length": num_ctx} for name, num_ctx in loaded]}

    def show(self, body):
        name = self.find(body)
        created = self.created.get(name, {})
        parameters = "\n".join(f"{key} {json.dumps(value)}" for key, value in created.get("parameters", {}).items())
        return {
            "modelfile": f"FROM {name}",
            "parameters": parameters,
            "system": created.get("system", ""),
            "template": created.get("template", "{{ .Prompt }}"),
            "details": self.describe(name)["details"],
            "model_info": {"general.architecture": "qwen2", "qwen2.context_length": CONTEXT},
            "capabilities": ["completion"],
        }

    def chat(self, body):
        name, messages = self.find(body), body.get("messages") or []
        if not messages:
            return self.load_or_unload(name, body, {"message": {"role": "assistant", "content": ""}})
        with self.lock:
            k = next(self.chats)
        scripted = self.before_chat(k, body)
        if isinstance(scripted, Raw):
            self.load(name, self.options(name, body).get("num_ctx", LOADED_CONTEXT))
            return scripted
        return self.answer(
            name, messages, body, lambda text: {"message": {"role": "assistant", "content": text}}, scripted
        )

    def generate(self, body):
        name = self.find(body)
        if not body.get("prompt"):
            return self.load_or_unload(name, body, {"response": ""})
        system = [{"role": "system", "content": body["system"]}] if body.get("system") else []
        messages = [*system, {"role": "user", "content": body["prompt"]}]
        return self.answer(name, messages, body, lambda text: {"response": text})

    def create(self, body):
        files = body.get("files")
        if not files or not body.get("model"):
            raise Refusal(400, "neither 'from' or 'files' was specified" if body.get("model") else "invalid model name")
        for digest in files.values():
            if digest not in self.blobs:
                raise Refusal(400, f"blob {digest} not found")
        if not any(name.endswith((".safetensors", ".gguf")) for name in files):
            raise Refusal(400, "no safetensors or gguf files found")
        config = {}
        if not any(name.endswith(".gguf") for name in files):
            if "config.json" not in files:
                raise Refusal(400, "open config.json: file does not exist")
            config = json.loads(self.blobs[files["config.json"]])
            yield {"status": "converting model"}
            architecture = (config.get("architectures") or [""])[0]
            if architecture not in CONVERTIBLE:
                raise Refusal(500, f"unsupported architecture {json.dumps(architecture)}")
        self.before_create(body)
        if body.get("quantize"):
            if body["quantize"].upper() not in QUANTIZATIONS:
                raise Refusal(400, f"unsupported quantization type {body['quantize']}")
            yield {"status": f"quantizing F16 model to {body['quantize'].upper()}"}
        name = tagged(body["model"])
        self.created[name] = {**body, "config": config}
        self.models[name] = digest_of(json.dumps(body, sort_keys=True).encode())
        yield {"status": "writing manifest"}
        yield {"status": "success"}

    def pull(self, body):
        name = tagged(body.get("model") or body.get("name") or "")
        digest = digest_of(name.encode())
        self.models[name] = digest
        layer = {"status": f"pulling {digest[:12]}", "digest": f"sha256:{digest}", "total": 1000}
        yield from [{"status": "pulling manifest"}, layer, {**layer, "completed": 1000}]
        yield from [{"status": "verifying sha256 digest"}, {"status": "success"}]

    def delete(self, body):
        name = self.find(body)
        for models in (self.models, self.created, self.loaded):
            models.pop(name, None)
        return {}

    # What they share.

    def find(self, body):
        name = body.get("model") or body.get("name") or ""
        if tagged(name) not in self.models:
            raise Refusal(404, f"model '{name}' not found")
        return tagged(name)

    def describe(self, name):
        digest = self.models[name]
        details = {"format": "gguf", "family": "qwen2", "parameter_size": "150K", "quantization_level": "F32"}
        return {"name": name, "model": name, "modified_at": now(), "size": SIZE, "digest": digest, "details": details}

    def load(self, name, num_ctx):
        if self.loaded.get(name) != num_ctx:
            self.loaded[name] = num_ctx
            self.loads.append((name, num_ctx))

    def load_or_unload(self, name, body, empty):
        if unloads(body):
            self.loaded.pop(name, None)
            reason = "unload"
        else:
            self.load(name, self.options(name, body).get("num_ctx", LOADED_CONTEXT))
            reason = "load"
        return {"model": body["model"], "created_at": now(), **empty, "done": True, "done_reason": reason}

    def options(self, name, body):
        return {**DEFAULTS, **self.created.get(name, {}).get("parameters", {}), **(body.get("options") or {})}

    def answer(self, name, messages, body, wrap, scripted=None):
        """Ask the tiny model; return its answer as one dict, or as a stream of the dicts that `wrap` makes of pieces.

        scripted: the words of the answer, in place of the model's.
        """
        started = time.perf_counter_ns()
        options = self.options(name, body)
        if body.get("think"):
            raise Refusal(400, f'"{name}" does not support thinking')
        system = self.created.get(name, {}).get("system")
        if system and messages[0].get("role") != "system":
            messages = [{"role": "system", "content": system}, *messages]
        num_ctx, limit = options.get("num_ctx", LOADED_CONTEXT), options.get("num_predict", -1)
        self.load(name, num_ctx)
        question = {
            "messages": messages,
            "max_tokens": limit if limit > 0 else PREDICT,
            **response_format(body),
            **{key: options[key] for key in PASSED_ON if key in options},
            **({"logprobs": True, "top_logprobs": body.get("top_logprobs", 0)} if body.get("logprobs") else {}),
            "cache_prompt": False,  # so that an answer does not depend on the questions before
        }
        try:
            answer = self.llama.handle_chat_completions(question)
        except ValueError as error:  # a schema or a message that it cannot use
            raise Refusal(400, str(error)) from None
        except RuntimeError as error:
            raise Refusal(500, str(error)) from None
        if "error" in answer:
            raise Refusal(answer["error"]["code"], answer["error"]["message"])
        usage, timings, choice = answer["usage"], answer["timings"], answer["choices"][0]
        if usage["prompt_tokens"] > num_ctx:
            raise Refusal(
                400,
                f"request ({usage['prompt_tokens']} tokens) exceeds the available context size "
                f"({num_ctx} tokens), try increasing it",
            )
        if unloads(body):
            self.loaded.pop(name, None)
        head, text = {"model": body["model"], "created_at": now()}, choice["message"]["content"] or ""
        if scripted is not None:
            text, choice = scripted, {"finish_reason": "stop"}
        logprobs = (choice.get("logprobs") or {}).get("content")
        tail = {
            **({"logprobs": logprobs} if logprobs else {}),
            "done": True,
            "done_reason": choice["finish_reason"],
            "total_duration": time.perf_counter_ns() - started,
            "load_duration": 1,
            "prompt_eval_count": usage["prompt_tokens"],
            "prompt_eval_duration": int(timings["prompt_ms"] * 1e6),
            "eval_count": usage["completion_tokens"],
            "eval_duration": int(timings["predicted_ms"] * 1e6),
        }
        if not body.get("stream", True):
            return {**head, **wrap(text), **tail}
        return iter([*({**head, **wrap(piece), "done": False} for piece in text), {**head, **wrap(""), **tail}])


def response_format(body):
    schema = body.get("format") or None
    if schema is None:
        return {}
    if schema == "json":
        return {"response_format": {"type": "json_object"}}
    if not isinstance(schema, dict):
        raise Refusal(400, f'invalid format: {json.dumps(schema)}; expected "json" or a valid JSON Schema object')
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}


def unloads(body):
    return str(body.get("keep_alive", "5m")).rstrip("hms") == "0"


def tagged(name):
    return name if ":" in name else f"{name}:latest"


def digest_of(content):
    return hashlib.sha256(content).hexdigest()


def now():
    return datetime.now(UTC).isoformat()


class Handler(BaseHTTPRequestHandler):
    """HTTP/1.0, one request a connection: closing the server never waits for a client that only keeps one open."""

    ANSWERS = {
        ("GET", "/api/version"): OllamaServer.version,
        ("GET", "/api/tags"): OllamaServer.tags,
        ("GET", "/api/ps"): OllamaServer.ps,
        ("POST", "/api/show"): OllamaServer.show,
        ("POST", "/api/chat"): OllamaServer.chat,
        ("POST", "/api/generate"): OllamaServer.generate,
        ("POST", "/api/create"): OllamaServer.create,
        ("POST", "/api/pull"): OllamaServer.pull,
        ("DELETE", "/api/delete"): OllamaServer.delete,
    }

    def handle_request(self):
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            try:
                self.answer(self.server.ollama, content)
            except Refusal as refusal:
                self.send(refusal.status, {"error": str(refusal)})
        except ConnectionError:
            pass  # the client has closed the connection

    do_GET = do_HEAD = do_POST = do_DELETE = handle_request

    def answer(self, ollama, content):
        is_blob, body, problem = self.path.startswith("/api/blobs/"), None, "missing request body"
        try:
            body = json.loads(content) if content and not is_blob else None
        except ValueError as error:
            problem = str(error)
        ollama.requests.append(Request(self.command, self.path, body))
        if self.path == "/":
            self.send(200, "Ollama is running")
        elif is_blob:
            self.answer_blob(ollama.blobs, self.path.removeprefix("/api/blobs/"), content)
        elif (self.command, self.path) not in self.ANSWERS:
            self.send(404, "404 page not found")
        elif self.command != "GET" and not isinstance(body, dict):
            raise Refusal(400, problem)
        else:
            answer = self.ANSWERS[self.command, self.path](ollama, body)
            if isinstance(answer, Raw):
                self.send_raw(answer)
            elif isinstance(answer, dict):
                self.send(200, answer)
            elif body.get("stream", True):
                self.send_stream(answer)
            else:
                self.send(200, list(answer)[-1])

    def answer_blob(self, blobs, digest, content):
        if self.command == "HEAD":
            self.send(200 if digest in blobs else 404)
        elif digest != f"sha256:{digest_of(content)}":
            raise Refusal(400, "digest mismatch")
        else:
            status = 200 if digest in blobs else 201
            blobs[digest] = content  # before the answer, after which the client may name it at once
            self.send(status)

    def send(self, status, answer=""):
        is_json = isinstance(answer, dict)
        content = (json.dumps(answer, ensure_ascii=False) if is_json else answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if is_json else "text/plain")
        self.send_header("Content-Length", str(len(content)))
        if 300 <= status < 400:
            self.send_header("Location", answer["error"])
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_raw(self, raw):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(raw.length))
        self.end_headers()
        self.wfile.write(raw.content)

    def send_stream(self, events):
        """Send one JSON object per line; the status is sent before the first, so an error is a line, too."""
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.end_headers()
        try:
            for event in events:
                self.wfile.write(json.dumps(event, ensure_ascii=False).encode() + b"\n")
        except Refusal as refusal:
            self.wfile.write(json.dumps({"error": str(refusal)}).encode() + b"\n")

    def log_message(self, *_):
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", required=True, help="the model that answers")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=11434)
    parser.add_argument("--model", action="append", default=[], help="a name of it; may be repeated")
    options = parser.parse_args()
    server = OllamaServer(options.gguf, options.model, options.host, options.port)
    with contextlib.suppress(KeyboardInterrupt), server:
        print(f"answering as Ollama at {server.url}", flush=True)
        server.thread.join()


if __name__ == "__main__":
    main()
