"""A stand-in for Ollama: its HTTP API in front of a real llama-server with a tiny model (scripts/demo/tiny.py).

    with OllamaServer(gguf, ["qwen2.5:14b"]) as server:
        ...  # talk to server.url
        assert server.requests[-1].path == "/api/chat"

    python tests/ollama_server.py --gguf data/tiny/tiny.gguf --port 11434 --model qwen2.5:14b

Under every name the tiny model answers: JSON schemas, limits, seeds and errors are real, the words are not.
Only what Huiyin asks for is there. Not imitated: Ollama's truncation of long prompts (they are always refused), its
queue, and conversion of a created model beyond the checks its converter makes first. Answers are streamed in pieces,
but after they are complete.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import xllamacpp

SIZE = 600_000  # bytes of a model
CONTEXT, LOADED_CONTEXT = 32768, 4096  # of the tiny model; of a request that names none
PREDICT = 1000  # tokens, where a request sets no limit, which is 10 contexts in Ollama
CONVERTIBLE = {"Qwen2ForCausalLM", "LlamaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Phi3ForCausalLM"}
QUANTIZATIONS = {"Q8_0", "Q4_K_S", "Q4_K_M", "F16", "F32", "BF16"}
PASSED_ON = {"temperature", "top_p", "top_k", "min_p", "seed", "stop", "repeat_penalty"}
PROBE = [{"role": "user", "content": "你好，今天过得怎么样？"}]  # huiyin/llm/probe.py; not there in a container
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


class Endless(NamedTuple):
    """A response that never ends: `start`, and then `piece` again and again, each after so many seconds."""

    start: bytes
    piece: bytes
    seconds: float = 0


def whole(text, **fields):
    """Return the bytes of a whole answer of /api/chat with the content `text`; `fields` replace fields of it."""
    end = {"done": True, "done_reason": "stop", "prompt_eval_count": 1, "eval_count": 1}
    message = {"role": "assistant", "content": text}
    return json.dumps({"model": "any", "created_at": now(), "message": message, **end, **fields}).encode()


# Faults for `before_chat` to raise or return; a hang is its own sleep or wait, a kill its own os.kill.
def too_long(tokens=5000, num_ctx=4096):
    size = f"the available context size ({num_ctx} tokens)"
    raise Refusal(400, f"request ({tokens} tokens) exceeds {size}, try increasing it")


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
    return exactly(whole('<think>the first, surely {"answers": "1"}'))


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
    the client or raise a Refusal. If it returns a text, that is the answer in place of the model's; a Raw or Endless is
    sent as it is. `before_probe(body)` is the same for the probe, which is not counted. `before_create(body)` is called
    while a model is converted; it may raise a Refusal. `remembered`: None, or a dict in which answers are kept, for
    tests that ask the same questions, seeds and all, again and again.
    """

    def __init__(self, gguf, models, host="127.0.0.1", port=0):
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel = str(gguf), CONTEXT, 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1  # a tiny model is not faster with more
        params.warmup, params.verbosity = False, -1
        self.llama = xllamacpp.Server(params)
        self.models = {tagged(name): digest_of(name.encode()) for name in models}
        self.requests, self.blobs, self.created, self.loaded, self.loads = [], {}, {}, {}, []
        self.before_chat = lambda k, body: None
        self.before_probe = lambda body: None
        self.before_create = lambda body: None
        self.on_gpu, self.remembered = 1.0, None  # part of a loaded model on the card
        self.chats, self.lock = itertools.count(1), threading.Lock()
        self.http = ThreadingHTTPServer((host, port), Handler)
        self.http.daemon_threads = False  # closing waits: a thread left inside llama.cpp crashes the process
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

    def tags(self, body):
        return {"models": [self.describe(name) for name in self.models]}

    def ps(self, body):
        state = {"size_vram": int(SIZE * self.on_gpu)}
        loaded = dict(self.loaded).items()
        return {"models": [{**self.describe(name), **state, "context_length": num_ctx} for name, num_ctx in loaded]}

    def show(self, body):
        self.find(body)
        return {"model_info": {"general.architecture": "qwen2", "qwen2.context_length": CONTEXT}}

    def chat(self, body):
        name, messages = self.find(body), body.get("messages") or []
        options = {**DEFAULTS, **self.created.get(name, {}).get("parameters", {}), **(body.get("options") or {})}
        num_ctx = options.pop("num_ctx", LOADED_CONTEXT)
        if not messages:
            self.load(name, num_ctx)
            return exactly(whole("", model=body["model"], done_reason="load"))
        if messages == PROBE:  # no question: it is not counted
            scripted = self.before_probe(body)
        else:
            with self.lock:
                k = next(self.chats)
            scripted = self.before_chat(k, body)
        self.load(name, num_ctx)
        as_it_is = isinstance(scripted, Raw | Endless)
        return scripted if as_it_is else self.answer(name, messages, body, options, num_ctx, scripted)

    def generate(self, body):
        if body.get("prompt") or body.get("keep_alive") != 0:
            raise Refusal(400, "this stand-in only unloads a model here")
        self.loaded.pop(self.find(body), None)
        return {"model": body["model"], "created_at": now(), "response": "", "done": True, "done_reason": "unload"}

    def create(self, body):
        files = body.get("files")
        if not files or not body.get("model"):
            raise Refusal(400, "neither 'from' or 'files' was specified" if body.get("model") else "invalid model name")
        for digest in files.values():
            if digest not in self.blobs:
                raise Refusal(400, f"blob {digest} not found")
        if any(name.endswith(".gguf") for name in files):
            config = yield from self.parse(files)
        else:
            config = yield from self.convert(files)
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

    def convert(self, files):
        """Yield the events of an import from safetensors; return the content of config.json."""
        if not any(name.endswith(".safetensors") for name in files):
            raise Refusal(400, "no safetensors or gguf files found")
        if "config.json" not in files:
            raise Refusal(400, "open config.json: file does not exist")
        config = json.loads(self.blobs[files["config.json"]])
        yield {"status": "converting model"}
        architecture = (config.get("architectures") or [""])[0]
        if architecture not in CONVERTIBLE:
            raise Refusal(500, f"unsupported architecture {json.dumps(architecture)}")
        return config

    def parse(self, files):
        """Yield the events of an import of a GGUF file; return nothing, where there is no config.json."""
        yield {"status": "parsing GGUF"}
        if any(self.blobs[digest][:4] != b"GGUF" for digest in files.values()):
            raise Refusal(500, "invalid file magic")

    def pull(self, body):
        name = tagged(body.get("model") or body.get("name") or "")
        digest = digest_of(name.encode())
        self.models[name] = digest
        layer = {"status": f"pulling {digest[:12]}", "digest": f"sha256:{digest}", "total": 1000}
        yield from [{"status": "pulling manifest"}, layer, {**layer, "completed": 1000}]
        yield from [{"status": "verifying sha256 digest"}, {"status": "success"}]

    def copy(self, body):
        self.models[tagged(body["destination"])] = self.models[self.find({"model": body["source"]})]
        return exactly(b"")

    # What they share.

    def find(self, body):
        name = body.get("model") or body.get("name") or ""
        if tagged(name) not in self.models:
            raise Refusal(404, f"model '{name}' not found")
        return tagged(name)

    def describe(self, name):
        return {"name": name, "model": name, "size": SIZE, "digest": self.models[name]}

    def load(self, name, num_ctx):
        if self.loaded.get(name) != num_ctx:
            self.loaded[name] = num_ctx
            self.loads.append((name, num_ctx))

    def complete(self, question):
        if self.remembered is None or question["seed"] < 0:
            return self.llama.handle_chat_completions(question)
        key = json.dumps(question)
        if key not in self.remembered:
            self.remembered[key] = self.llama.handle_chat_completions(question)
        return self.remembered[key]

    def answer(self, name, messages, body, options, num_ctx, scripted):
        """Ask the tiny model; return its answer as one dict, or as a stream of dicts with a piece each.

        scripted: the words of the answer, in place of the model's; or None.
        """
        if body.get("think"):
            raise Refusal(400, f'"{name}" does not support thinking')
        system = self.created.get(name, {}).get("system")
        if system and messages[0].get("role") != "system":
            messages = [{"role": "system", "content": system}, *messages]
        limit, schema = options.get("num_predict", -1), body.get("format")
        question = {
            "messages": messages,
            "max_tokens": limit if limit > 0 else PREDICT,
            **({"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}} if schema else {}),
            **{key: options[key] for key in PASSED_ON if key in options},
            **({"logprobs": True, "top_logprobs": body.get("top_logprobs", 0)} if body.get("logprobs") else {}),
            "cache_prompt": False,  # so that an answer does not depend on the questions before
        }
        try:
            answer = self.complete(question)
        except ValueError as error:  # a schema or a message that it cannot use
            raise Refusal(400, str(error)) from None
        except RuntimeError as error:
            raise Refusal(500, str(error)) from None
        if "error" in answer:
            raise Refusal(answer["error"]["code"], answer["error"]["message"])
        usage, choice = answer["usage"], answer["choices"][0]
        if usage["prompt_tokens"] > num_ctx:
            too_long(usage["prompt_tokens"], num_ctx)
        text = choice["message"]["content"] or ""
        if scripted is not None:
            text, choice = scripted, {"finish_reason": "stop"}
        logprobs = (choice.get("logprobs") or {}).get("content")
        end = {"done": True, "done_reason": choice["finish_reason"], "prompt_eval_count": usage["prompt_tokens"]}
        end |= {"eval_count": usage["completion_tokens"], **({"logprobs": logprobs} if logprobs else {})}

        def event(words, **fields):
            message = {"role": "assistant", "content": words}
            return {"model": body["model"], "created_at": now(), "message": message, **fields}

        if not body.get("stream", True):
            return event(text, **end)
        return iter([*(event(piece, done=False) for piece in text), event("", **end)])


def tagged(name):
    return name if ":" in name else f"{name}:latest"


def digest_of(content):
    return hashlib.sha256(content).hexdigest()


def now():
    return datetime.now(UTC).isoformat()


class Handler(BaseHTTPRequestHandler):
    """HTTP/1.0, one request a connection: closing the server never waits for a client that only keeps one open."""

    ANSWERS = {
        ("GET", "/api/tags"): OllamaServer.tags,
        ("GET", "/api/ps"): OllamaServer.ps,
        ("POST", "/api/show"): OllamaServer.show,
        ("POST", "/api/chat"): OllamaServer.chat,
        ("POST", "/api/generate"): OllamaServer.generate,
        ("POST", "/api/create"): OllamaServer.create,
        ("POST", "/api/pull"): OllamaServer.pull,
        ("POST", "/api/copy"): OllamaServer.copy,
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

    do_GET = do_HEAD = do_POST = handle_request

    def answer(self, ollama, content):
        is_blob, body, problem = self.path.startswith("/api/blobs/"), None, "missing request body"
        try:
            body = json.loads(content) if content and not is_blob else None
        except ValueError as error:
            problem = str(error)
        ollama.requests.append(Request(self.command, self.path, body))
        if is_blob:
            self.answer_blob(ollama.blobs, self.path.removeprefix("/api/blobs/"), content)
        elif (self.command, self.path) not in self.ANSWERS:
            raise Refusal(404, "404 page not found")
        elif self.command != "GET" and not isinstance(body, dict):
            raise Refusal(400, problem)
        else:
            answer = self.ANSWERS[self.command, self.path](ollama, body)
            if isinstance(answer, Endless):
                self.send_endless(answer)
            elif isinstance(answer, Raw | dict):
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

    def send(self, status, answer=None):
        raw = answer if isinstance(answer, Raw) else exactly(json.dumps(answer, ensure_ascii=False).encode())
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(raw.length))
        if 300 <= status < 400:
            self.send_header("Location", answer["error"])
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw.content)

    def send_endless(self, answer):
        """Send until the client has enough, and closes the connection."""
        self.wfile.write(answer.start)
        while True:
            self.wfile.write(answer.piece)
            threading.Event().wait(answer.seconds)

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
