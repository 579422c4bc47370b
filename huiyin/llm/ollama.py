"""Ollama over its own API (docs/api.md there): ask, unload, create a model."""

import json
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from huiyin.common.errors import UserError
from huiyin.common.lazy import requests
from huiyin.common.progress import Progress
from huiyin.common.stage import sha256
from huiyin.llm.backend import (
    CONNECT_SECONDS,
    TOP_LOGPROBS,
    Answer,
    NoServer,
    Unavailable,
    Unusable,
    check_not_thinking,
    error_text,
    send,
    session_for,
)

UNLOAD_SECONDS = 120
LOAD_SECONDS = 600  # Ollama itself gives up after 5 minutes without progress
CREATE_SECONDS = 3600  # between two lines of its stream; it says nothing while it converts a large model
STORES = ["~/.ollama/models", "/usr/share/ollama/.ollama/models"]  # as ollama serve and its installer have it


class Ollama:
    """The model `model` on the Ollama server at `url`."""

    def __init__(self, url, model, num_ctx, read_seconds, allow_remote=False, connections=1):
        self.url, self.model, self.num_ctx, self.read_seconds = url.rstrip("/"), model, num_ctx, read_seconds
        self.session = session_for(url, allow_remote, connections)

    def identity(self):
        """The digest of the model; NoServer or another `UserError` if the server or the model is not there."""
        digest = self.models().get(tagged(self.model))
        if digest is None:
            raise UserError(f"Ollama at {self.url} has no model {self.model!r}; get it with: ollama pull {self.model}")
        return digest

    def models(self):
        """{name: digest} of the models the server has."""
        try:
            answer = self.session.get(f"{self.url}/api/tags", timeout=(CONNECT_SECONDS, self.read_seconds))
            answer.raise_for_status()
            return {model["name"]: model["digest"] for model in answer.json()["models"]}
        except (requests.RequestException, KeyError, TypeError):
            raise self.absent() from None

    def is_there(self):
        return tagged(self.model) in self.models()

    def pull(self):
        """Let the server fetch the model; yield (part, bytes there, bytes in all) as it goes on."""
        status = None
        with self.session.post(
            f"{self.url}/api/pull",
            json={"model": self.model},
            stream=True,
            timeout=(CONNECT_SECONDS, self.read_seconds),
        ) as answer:
            for line in filter(None, answer.iter_lines()):
                event = json.loads(line)
                if "error" in event:  # comes on a 200, too
                    raise UserError(
                        f"Ollama cannot fetch {self.model}: {event['error']}; is the name right, is the "
                        "network there? HTTPS_PROXY names a proxy"
                    )
                status = event.get("status")
                if "total" in event:
                    yield event["digest"], event.get("completed", 0), event["total"]
        if status != "success":
            raise UserError(f"Ollama stopped fetching {self.model} after: {status}; start again, what is there is kept")

    def prepare(self):
        """Load the model; check that its context is as large as `num_ctx` and that it really is on the GPU."""
        info = send(self.session, "POST", f"{self.url}/api/show", self.read_seconds, {"model": self.model})
        contexts = [value for key, value in info.get("model_info", {}).items() if key.endswith(".context_length")]
        if contexts and min(contexts) < self.num_ctx:
            raise UserError(
                f"{self.model} has a context of {min(contexts)} tokens, "
                f"less than num_ctx: {self.num_ctx} in llm.yaml; lower it or take another model"
            )
        # `shift` belongs to what a model is loaded with: another value in the first question would load it again
        send(
            self.session,
            "POST",
            f"{self.url}/api/chat",
            max(LOAD_SECONDS, self.read_seconds),
            {
                "model": self.model,
                "messages": [],
                "stream": False,
                "shift": False,
                "keep_alive": "30m",
                "options": {"num_ctx": self.num_ctx},
            },
        )
        running = send(self.session, "GET", f"{self.url}/api/ps", self.read_seconds)["models"]
        for model in running:
            if model["name"] == tagged(self.model) and model.get("size_vram", 0) < model.get("size", 0):
                share = model.get("size_vram", 0) / model["size"]
                print(
                    f"WARNING: only {share:.0%} of {self.model} at {self.url} is on the GPU, the rest is on the "
                    "processor and many times slower; take a smaller model or num_ctx x parallel, "
                    "and look at `ollama ps` and nvidia-smi",
                    file=sys.stderr,
                    flush=True,
                )

    def chat(self, messages, schema, temperature, seed, max_tokens, logprobs=False, may_be_cut=False):
        """Return the Answer, bound by the JSON schema `schema` (None: free text).

        Everything is sent in every request: another num_ctx from one to the next reloads the model, and the
        defaults would cut long prompts in silence.
        """
        answer = send(
            self.session,
            "POST",
            f"{self.url}/api/chat",
            self.read_seconds,
            {
                "model": self.model,
                "messages": messages,
                "stream": False,
                "think": False,
                "truncate": False,
                "shift": False,
                "keep_alive": "30m",
                **({} if schema is None else {"format": schema}),
                **({"logprobs": True, "top_logprobs": TOP_LOGPROBS} if logprobs else {}),
                "options": {
                    "num_ctx": self.num_ctx,
                    "num_predict": max_tokens,
                    "temperature": temperature,
                    "seed": seed,
                },
            },
        )
        try:
            # Ollama says 200 for answers it broke off, too
            reasons = ["stop", "length"] if may_be_cut else ["stop"]
            if not answer.get("done") or answer.get("done_reason") not in reasons:
                raise Unusable(f"the answer was broken off: done_reason {answer.get('done_reason')}")
            message = answer["message"]
            text = message.get("content") or ""
            check_not_thinking(message.get("thinking"), text)
            tokens = answer.get("prompt_eval_count", 0) + answer.get("eval_count", 0)
            return Answer(text, tokens, answer.get("logprobs"))
        except (AttributeError, KeyError, TypeError):
            raise Unusable(f"{self.url}: the answer is none of Ollama's") from None

    def unload(self):
        """Free the card: ask Ollama to drop its models and wait until it has (200 alone does not mean that)."""
        deadline = time.monotonic() + UNLOAD_SECONDS
        for name in self.loaded():
            send(self.session, "POST", f"{self.url}/api/generate", self.read_seconds, {"model": name, "keep_alive": 0})
        while self.loaded():
            if time.monotonic() > deadline:
                raise UserError(f"Ollama at {self.url} still holds a model after {UNLOAD_SECONDS} s; stop it by hand")
            time.sleep(0.5)

    def loaded(self):
        """Names of the models in memory; a server that is not there holds none."""
        try:
            running = send(self.session, "GET", f"{self.url}/api/ps", self.read_seconds)
        except Unavailable:
            return []
        return [model["name"] for model in running["models"]]

    def talk(self, messages):
        """Yield the reply to `messages` piece by piece, under the model's own parameters; `UserError` if it breaks off.

        Messages that no longer fit into the context are left out by Ollama, the oldest first.
        """
        body = {"model": self.model, "messages": messages, "stream": True, "think": False, "keep_alive": "30m"}
        for event in self.stream("/api/chat", body, max(LOAD_SECONDS, self.read_seconds)):
            yield event["message"]["content"]

    def create(self, files, quantize, template, system, parameters):
        """Create the model from `files` ({name: path}) and return its digest; the stream is read to its last line."""
        digests = {}
        with Progress("create", sum(path.stat().st_size for path in files.values()), "B", bytes=True) as progress:
            for name, path in files.items():
                digests[name] = f"sha256:{sha256(path)}"
                self.upload(path, digests[name], progress)
        body = {
            "model": self.model,
            "files": digests,
            "template": template,
            "system": system,
            "parameters": parameters,
            **({"quantize": quantize} if quantize else {}),
        }
        status = None
        with Progress("create", None, "B", bytes=True) as progress:
            for event in self.stream("/api/create", body, CREATE_SECONDS):
                if event.get("status") != status:
                    status = event.get("status")
                    print(f"create: {status}", flush=True)
                if event.get("total"):
                    progress.set_total(event["total"])
                    progress.add(event.get("completed", 0) - progress.done)
        if status != "success":
            raise UserError(f"Ollama at {self.url} stopped after: {status}; look into its log and export again")
        return self.identity()

    def upload(self, path, digest, progress):
        """Send the file at `path` unless the server has one of its digest already."""
        blob, timeout = f"{self.url}/api/blobs/{digest}", (CONNECT_SECONDS, CREATE_SECONDS)
        try:
            if self.session.head(blob, timeout=timeout).status_code == 200:
                progress.add(path.stat().st_size)
                return
            with open(path, "rb") as file:
                sent = self.session.post(blob, data=Counted(file, path.stat().st_size, progress), timeout=timeout)
        except requests.RequestException as error:
            raise UserError(
                f"Ollama at {self.url} broke off while it was sent {path} ({type(error).__name__}); "
                "look into its log, is its disk full? Then export again"
            ) from None
        if sent.status_code not in (200, 201):
            raise UserError(f"Ollama at {self.url} does not take {path}: status {sent.status_code}, {error_text(sent)}")

    def stream(self, path, body, read_seconds):
        """Yield the answers of a request that streams; an error is `UserError`, also one that comes on a status 200."""
        try:
            with self.session.post(
                f"{self.url}{path}",
                json=body,
                stream=True,
                allow_redirects=False,
                timeout=(CONNECT_SECONDS, read_seconds),
            ) as answer:
                for line in filter(None, answer.iter_lines()):
                    event = json.loads(line)
                    if "error" in event:
                        raise UserError(f"Ollama at {self.url}: {self.model}: {event['error']}")
                    yield event
        except requests.ConnectionError:
            raise self.absent() from None
        except (requests.RequestException, ValueError) as error:
            raise UserError(
                f"Ollama at {self.url} broke off in the middle ({type(error).__name__}); look into its log"
            ) from None

    def absent(self):
        return NoServer(f"no Ollama answers at {self.url}; start it (ollama serve), or set url or backend in llm.yaml")

    def store(self):
        """The folder in which an Ollama on this machine keeps its models; None where that is not known."""
        if urlsplit(self.url).hostname not in ("127.0.0.1", "localhost", "::1"):
            return None
        return next(filter(Path.is_dir, (Path(name).expanduser() for name in STORES)), None)


class Counted:
    """A file whose reading is progress; `requests` takes its length from it."""

    def __init__(self, file, size, progress):
        self.file, self.size, self.progress = file, size, progress

    def __len__(self):
        return self.size

    def read(self, size=-1):
        content = self.file.read(size)
        self.progress.add(len(content))
        return content


def tagged(name):
    return name if ":" in name else f"{name}:latest"
