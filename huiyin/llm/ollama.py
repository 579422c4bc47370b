"""Ollama through its own API (docs/api.md in its repository): ask, unload, fetch and create a model."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from huiyin.common.digests import sha256
from huiyin.common.errors import UserError
from huiyin.common.lazy import requests
from huiyin.common.progress import Progress
from huiyin.common.settings import without_credentials
from huiyin.llm.backend import (
    TOP_LOGPROBS,
    URL_SETTING,
    Answer,
    Call,
    ChatRequest,
    NoServer,
    OutOfBounds,
    Unavailable,
    Unusable,
    answer_in,
    broken_off,
    error_text,
    http_request,
    in_format_of,
    send,
    session_for,
    shown,
)

READ_SECONDS = 120
UNLOAD_SECONDS = 120
LOAD_SECONDS = 600  # Ollama itself gives up after 5 minutes without progress
# Without progress: the stream is silent while Ollama converts a large model, or computes its digest
CREATE_SECONDS, PULL_SECONDS = 3600, 1800
STORES = ["~/.ollama/models", "/usr/share/ollama/.ollama/models"]  # of `ollama serve`, and of its installer


class BrokenStream(UserError):
    """A stream of events ended with an error, or before its end."""


class Ollama:
    """The model `model` on the Ollama server at `url`, which `setting` names. `prepare` and `chat` use `num_ctx`."""

    def __init__(
        self,
        url: str,
        model: str,
        num_ctx: int = 0,
        read_seconds: float = READ_SECONDS,
        allow_remote: bool = False,
        connections: int = 1,
        setting: str = URL_SETTING,
    ) -> None:
        self.url, self.setting = without_credentials(url).rstrip("/"), setting
        self.model, self.num_ctx, self.read_seconds = model, num_ctx, read_seconds
        self.session = session_for(url, allow_remote, connections, setting)
        self.identified: str | None = None  # the digest that `identity` has returned
        # in every request: another value of `shift` would load the model again
        self.always = {"model": model, "stream": False, "shift": False, "keep_alive": "30m"}

    def identity(self) -> str:
        """Return the digest of the model; NoServer or another `UserError` if the server or the model is not there."""
        digest = self.digest()
        if digest is None:
            raise UserError(f"Ollama at {self.url} has no model {self.model!r}; get it with: ollama pull {self.model}")
        self.identified = digest
        return digest

    def check_same(self) -> None:
        """`UserError` if another model has the name now than the one that `identity` has found."""
        if self.identified not in (None, self.digest()):
            raise UserError(
                f"{self.model} at {self.url} was exchanged or removed while it was asked; what it has answered before "
                "is kept, start again to ask the model that is there now"
            )

    def digest(self, name: str = "") -> str | None:
        """Return the digest of the model, or that of another `name`, None if the server does not have it; NoServer if
        there is none."""
        try:
            response = http_request(self.session, "GET", Call(f"{self.url}/api/tags", self.read_seconds))
            response.raise_for_status()
            digests = {model["name"]: model["digest"] for model in response.json()["models"]}
            return digests.get(tagged(name or self.model))
        except (requests.RequestException, AttributeError, LookupError, TypeError, RecursionError):
            raise self.no_server() from None

    def pull(self) -> Iterator[tuple[str, int, int]]:
        """Let the server fetch the model; yield (digest of a file, bytes fetched, bytes in all) as it goes on."""
        status, kept = None, "start again, what is fetched is kept"
        try:
            for event in self.stream("/api/pull", {"model": self.model}, PULL_SECONDS, progress=True):
                status = event.get("status")
                completed, total = sizes_in(event)
                if total:
                    yield str(event.get("digest")), completed, total
        except BrokenStream as error:
            advice = "is the name right, is the network there? HTTPS_PROXY names a proxy"
            raise UserError(f"{error}; {advice}; {kept}") from None
        if status != "success":
            raise UserError(f"Ollama stopped fetching {self.model} after: {shown(status)}; {kept}")

    def prepare(self) -> None:
        """Load the model; check that its context is as large as `num_ctx`, and warn unless all of it is on the GPU."""
        info = send(self.session, "POST", f"{self.url}/api/show", self.read_seconds, {"model": self.model})
        with in_format_of("Ollama", self.url):
            contexts = [value for key, value in info.get("model_info", {}).items() if key.endswith(".context_length")]
            if contexts and min(contexts) < self.num_ctx:
                raise UserError(
                    f"{self.model} has a context of {min(contexts)} tokens, less than num_ctx: {self.num_ctx} in "
                    "llm.yaml; lower it or take another model"
                )
        body = {**self.always, "messages": [], "options": {"num_ctx": self.num_ctx}}
        send(self.session, "POST", f"{self.url}/api/chat", max(LOAD_SECONDS, self.read_seconds), body)
        running = send(self.session, "GET", f"{self.url}/api/ps", self.read_seconds)
        with in_format_of("Ollama", self.url):
            sizes = {model["name"]: (model.get("size_vram", 0), model.get("size", 0)) for model in running["models"]}
            on_card, size = sizes.get(tagged(self.model), (0, 0))
            if on_card < size:
                warning = (
                    f"WARNING: only {on_card / size:.0%} of {self.model} at {self.url} is on the GPU, the rest is on "
                    "the processor and many times slower; take a smaller model or num_ctx x parallel, and look at "
                    "`ollama ps` and nvidia-smi"
                )
                print(warning, file=sys.stderr, flush=True)

    def chat(self, request: ChatRequest) -> Answer:
        """Return the answer of the model that `identity` has found, else `UserError`; one that ends at `max_tokens` is
        Unusable. Every request has all options: another num_ctx would load the model again, and by default Ollama
        silently cuts long prompts."""
        options: dict[str, Any] = {"num_ctx": self.num_ctx, "num_predict": request.max_tokens}
        options |= {"temperature": request.temperature, "seed": request.seed}
        body = {
            **self.always,
            **{"messages": request.messages, "think": False, "truncate": False, "options": options},
            **({} if request.schema is None else {"format": request.schema}),
            **({"logprobs": True, "top_logprobs": TOP_LOGPROBS} if request.logprobs else {}),
        }
        answer = send(self.session, "POST", f"{self.url}/api/chat", self.read_seconds, body)
        self.check_same()  # each time: a wrong answer under this digest would stay in the answer cache
        with in_format_of("Ollama", self.url):
            message = answer["message"]
            text, thinking = message.get("content") or "", message.get("thinking")
            if not answer.get("done") or answer.get("done_reason") != "stop":  # which has status 200, too
                raise broken_off(f"done_reason {shown(answer.get('done_reason'))}", text, thinking)
            tokens = answer.get("prompt_eval_count", 0) + answer.get("eval_count", 0)
            return answer_in(text, thinking, tokens, answer.get("logprobs"))

    def unload(self) -> None:
        """Free the card of the model, and wait until it is (status 200 comes before that). What other programs have
        loaded stays."""
        deadline = time.monotonic() + UNLOAD_SECONDS
        if self.is_loaded():
            body = {"model": self.model, "keep_alive": 0}
            send(self.session, "POST", f"{self.url}/api/generate", self.read_seconds, body)
        while self.is_loaded():
            if time.monotonic() > deadline:
                raise UserError(
                    f"Ollama at {self.url} still holds {self.model} after {UNLOAD_SECONDS} s; stop it by hand"
                )
            time.sleep(0.5)

    def is_loaded(self) -> bool:
        """Return whether the model is in memory; it is not where no server answers."""
        try:
            running = send(self.session, "GET", f"{self.url}/api/ps", self.read_seconds)
            with in_format_of("Ollama", self.url):
                return tagged(self.model) in [model["name"] for model in running["models"]]
        except (Unavailable, Unusable):  # the second: it is no Ollama
            return False

    def talk(self, messages: list[dict[str, str]]) -> Iterator[str]:
        """Yield the reply to `messages` in pieces, with the model's own parameters; `UserError` if it breaks off. Of
        messages that do not fit into the context Ollama leaves out the oldest."""
        body = {"model": self.model, "messages": messages, "stream": True, "think": False, "keep_alive": "30m"}
        for event in self.stream("/api/chat", body, max(LOAD_SECONDS, self.read_seconds)):
            try:
                piece = event["message"]["content"]
            except (LookupError, TypeError):
                raise BrokenStream(
                    f"Ollama at {self.url} sends no message, but something else; look into its log"
                ) from None
            yield piece

    def create(
        self, files: dict[str, Path], quantize: str, template: str, system: str, parameters: dict[str, Any]
    ) -> str:
        """Create the model from `files` ({name: path}) with weights of the type `quantize`; return its digest."""
        digests = {}
        with Progress("create", sum(path.stat().st_size for path in files.values()), "B", bytes=True) as progress:
            for name, path in files.items():
                digests[name] = f"sha256:{sha256(path)}"
                self.upload(path, digests[name], progress)
        body = {"model": self.model, "files": digests, "quantize": quantize, "template": template, "system": system}
        status = None
        with Progress("create", None, "B", bytes=True) as progress:
            for event in self.stream("/api/create", {**body, "parameters": parameters}, CREATE_SECONDS, progress=True):
                if event.get("status") != status:
                    status = event.get("status")
                    print(f"create: {shown(status)}", flush=True)
                completed, total = sizes_in(event)
                if total:
                    progress.set_total(total)
                    progress.add(completed - progress.done)
        if status != "success":
            raise UserError(f"Ollama at {self.url} stopped after: {shown(status)}; look into its log and export again")
        return self.identity()

    def copy(self, name: str) -> str:
        """Let the model have another `name`, too; return its digest. It takes no space: weights are kept once."""
        body = {"source": self.model, "destination": name}
        try:
            response = http_request(self.session, "POST", Call(f"{self.url}/api/copy", self.read_seconds), json=body)
        except requests.RequestException:
            raise self.no_server() from None
        digest = self.digest(name)
        if response.status_code != 200 or digest is None:
            reason = f"status {response.status_code}, {error_text(response)}"
            raise UserError(f"Ollama at {self.url} does not copy {self.model} to {name}: {reason}")
        return digest

    def upload(self, path: Path, digest: str, progress: Progress) -> None:
        """Send the file at `path` unless the server already has one of its `digest`."""
        url, size = f"{self.url}/api/blobs/{digest}", path.stat().st_size
        try:
            if http_request(self.session, "HEAD", Call(url, CREATE_SECONDS)).status_code == 200:
                progress.add(size)
                return
            with open(path, "rb") as file:
                data = CountedFile(file, size, progress)
                response = http_request(self.session, "POST", Call(url, CREATE_SECONDS), data=data)
        except requests.RequestException as error:
            raise UserError(
                f"Ollama at {self.url} broke off while it was sent {path} ({type(error).__name__}); "
                "look into its log, is its disk full? Then export again"
            ) from None
        if response.status_code not in (200, 201):
            reason = f"status {response.status_code}, {error_text(response)}"
            raise UserError(f"Ollama at {self.url} does not take {path}: {reason}")

    def stream(self, path: str, body: dict[str, Any], seconds: float, progress: bool = False) -> Iterator[Any]:
        """Yield the events of a request that streams; BrokenStream if it breaks off or an event reports an error.

        seconds: what all of it may take; with `progress`, what may pass until an event differs from the one before.
        """
        response, call, last = None, Call(f"{self.url}{path}", seconds), None
        try:
            with http_request(self.session, "POST", call, json=body, stream=True) as response:
                for line in filter(None, response.iter_lines()):
                    event = json.loads(line)
                    if not isinstance(event, dict):
                        raise ValueError("not an event")
                    if "error" in event:  # the status may be 200
                        raise BrokenStream(f"Ollama at {self.url}: {self.model}: {shown(event['error'])}")
                    if progress and event != last:
                        call.renew()
                    last = event
                    yield event
        except OutOfBounds as error:
            raise BrokenStream(f"{error}; look into the log of Ollama") from None
        except (requests.RequestException, ValueError, RecursionError) as error:
            if response is None and isinstance(error, requests.ConnectionError):
                raise self.no_server() from None
            what = f"broke off in the middle ({type(error).__name__})"
            raise BrokenStream(f"Ollama at {self.url} {what}; look into its log") from None

    def no_server(self) -> NoServer:
        return NoServer(f"no Ollama answers at {self.url}; start it (ollama serve), or change {self.setting}")

    def store(self) -> Path | None:
        """Return the folder in which an Ollama on this machine keeps its models; None where that is not known."""
        if urlsplit(self.url).hostname not in ("127.0.0.1", "localhost", "::1"):
            return None
        return next(filter(Path.is_dir, (Path(name).expanduser() for name in STORES)), None)


class CountedFile:
    """A file that reports to `progress` what is read of it; `requests` takes the Content-Length from its length."""

    def __init__(self, file: BinaryIO, size: int, progress: Progress) -> None:
        self.file, self.size, self.progress = file, size, progress

    def __len__(self) -> int:
        return self.size

    def read(self, size: int = -1) -> bytes:
        content = self.file.read(size)
        self.progress.add(len(content))
        return content


def sizes_in(event: dict[str, Any]) -> tuple[int, int]:
    """Return how many bytes are done, and how many there are; 0 where an event does not tell."""
    completed, total = (event.get(name) for name in ("completed", "total"))
    return completed if isinstance(completed, int) else 0, total if isinstance(total, int) else 0


def tagged(name: str) -> str:
    return name if ":" in name else f"{name}:latest"
