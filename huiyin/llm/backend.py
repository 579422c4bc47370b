"""What the backends share: their interface, their errors, and HTTP that stays in the private network."""

from __future__ import annotations

import ipaddress
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from huiyin.common.errors import UserError
from huiyin.common.lazy import requests
from huiyin.common.settings import without_credentials

CONNECT_SECONDS = 5
URL_SETTING = "url in llm.yaml"
TOP_LOGPROBS = 12  # the most probable tokens at each position, for the confidence: 10 candidates, none, and one more
ANSWER_BYTES = 8 << 20  # of an answer; the longest, a batch of gen with escaped characters, has a tenth of it
SHOWN = 200  # characters of what a server says: it may repeat what it was sent
TOO_LONG = re.compile(r"context (size|length|window)|exceed_context_size|maximum context", re.IGNORECASE)
OPEN, CLOSE = "<think>", "</think>"  # around a thought; a prompt may hold the first
THINKS = "the model thinks although thinking is switched off"
BUSY = {408, 429}  # the statuses below 500 after which a later try may succeed


class Answer(NamedTuple):
    text: str
    tokens: int  # of the prompt and of the answer
    logprobs: list[dict[str, Any]] | None = None  # [{"token", "logprob", "top_logprobs": [...]}, ...] as OpenAI has it
    thought: bool = False  # the model thought first; its log-probabilities are of no use then


class ChatRequest(NamedTuple):
    """What is sent to a model; the JSON `schema` restricts the answer (None: free text)."""

    messages: list[dict[str, str]]  # {"role", "content"}
    schema: dict[str, Any] | None
    temperature: float
    seed: int
    max_tokens: int  # of the answer
    logprobs: bool = False  # ask for the log-probabilities of the answer's tokens


class Backend(Protocol):
    """A model, on a server or in this process."""

    url: str

    def identity(self) -> str:
        """Return the digest of the model, or its name; Unavailable or `UserError` if the model is not there."""

    def prepare(self) -> None:
        """Load the model."""

    def chat(self, request: ChatRequest) -> Answer:
        """Return the answer; Unusable, Unavailable or TooLong if there is none."""


# Loopback, private, link-local. Python's is_private covers more, such as 198.18.0.0/15, from which some proxies answer.
OWN_V4 = ["127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"]
OWN_V6 = ["::1/128", "fc00::/7", "fe80::/10"]
OWN = [ipaddress.ip_network(network) for network in OWN_V4 + OWN_V6]


class Unusable(Exception):
    """The server answered, but not with a whole answer; another seed may do better."""


class Rubbish(Unusable):
    """The answer has the form that was asked for, and says nothing; a larger model may do better."""


class Unavailable(Exception):
    """The server did not answer, or could not; the same request may succeed a little later."""


class NoServer(Unavailable, UserError):
    """No server answers at that address: an error of the user, unless another server can do the work."""


class OutOfBounds(Unavailable, UserError):
    """An answer went on beyond its bounds."""


class TooLong(Exception):
    """Question and answer together do not fit into the context of the model."""


class Call:
    """A request to `url`, whose answer may take `seconds` and ANSWER_BYTES altogether, or as much again after each
    `renew`. http_request sets CALL, which the connection of that thread reads (bounded.py)."""

    def __init__(self, url: str, seconds: float) -> None:
        self.url, self.seconds = url, seconds
        self.renew()

    def renew(self) -> None:
        self.ends, self.bytes = time.monotonic() + self.seconds, 0

    def seconds_left(self) -> float:
        left = self.ends - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def received(self, count: int) -> None:
        self.bytes += count
        if self.bytes > ANSWER_BYTES:
            raise OutOfBounds(f"{self.url}: no whole answer within {ANSWER_BYTES >> 20} MiB")


CALL: ContextVar[Call] = ContextVar("call")


def session_for(url: str, allow_remote: bool, connections: int, setting: str = URL_SETTING) -> requests.Session:
    """Return a session for the server at `url`, which `setting` names; a public address needs `allow_remote`. It sends
    the user and password in `url`, so that the address can be used, and shown, without them."""
    address, url = url, without_credentials(url)
    try:
        parts = urlsplit(address)
        if "@" in parts.path + parts.query + parts.fragment:
            raise UserError(f"{setting}: the user or password before {url} has / ? or # in it; write %2F %3F %23")
        host, port = parts.hostname, parts.port
        if not host:
            raise ValueError("no host")
        addresses = {str(info[4][0]).partition("%")[0] for info in socket.getaddrinfo(host, port)}
    except ValueError:
        raise UserError(f"{setting}: {url!r} is no address; write it like http://127.0.0.1:11434") from None
    except socket.gaierror:
        raise NoServer(f"{setting}: {url}: there is no host {host!r}; is it running, is the name right?") from None
    local = all(any(ipaddress.ip_address(address) in network for network in OWN) for address in addresses)
    if not local and not allow_remote:
        raise UserError(
            f"{setting}: {url} is outside your own network, and what comes from your chats would go there; "
            "set allow_remote: true if that is what you want"
        )
    session = requests.Session()
    if parts.username is not None:
        user, password = (unquote(part or "").encode() for part in (parts.username, parts.password))
        session.auth = requests.auth.HTTPBasicAuth(user, password)
    session.headers["Accept-Encoding"] = "identity"
    session.trust_env = not local  # a proxy must never see calls to our own servers
    from huiyin.llm.bounded import Adapter  # here: it loads requests

    for scheme in ("http://", "https://"):
        session.mount(scheme, Adapter(pool_maxsize=connections))
    return session


def http_request(session: requests.Session, method: str, call: Call, **options: Any) -> requests.Response:
    """Return the response to a request; OutOfBounds if it takes too much, `UserError` for a redirect, which may lead
    outside our own network."""
    CALL.set(call)
    timeout, url = (CONNECT_SECONDS, call.seconds), call.url
    response = session.request(method, url, timeout=timeout, allow_redirects=False, **options)
    if 300 <= response.status_code < 400:
        target = shown(without_credentials(response.headers.get("Location", "nowhere")))
        raise UserError(f"{url} redirects to {target}; set the url of the server itself")
    return response


def send(session: requests.Session, method: str, url: str, seconds: float, body: dict[str, Any] | None = None) -> Any:
    """Send `body` as JSON and return the decoded answer. Raises Unavailable (no connection, a broken one, not in
    `seconds`, busy, 5xx), TooLong, Unusable (no JSON) or UserError (a redirect, another 4xx: the request is wrong)."""
    try:
        response = http_request(session, method, Call(url, seconds), json=body)
    except requests.RequestException as error:
        raise Unavailable(f"{url}: {type(error).__name__}") from None
    if response.status_code >= 500 or response.status_code in BUSY:
        raise Unavailable(f"{url}: status {response.status_code}, {error_text(response)}")
    if response.status_code >= 400:
        text = error_text(response)
        if TOO_LONG.search(text):
            raise TooLong(f"{url}: {text}")
        raise UserError(f"{url} refuses the request with status {response.status_code}: {text}")
    try:
        return response.json()
    except (requests.JSONDecodeError, RecursionError):
        raise Unusable(f"{url}: the answer is not JSON") from None


@contextmanager
def in_format_of(server: str, url: str) -> Iterator[None]:
    """Raise Unusable where the block does not find in an answer of `url` what such a `server` sends."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ArithmeticError):
        raise Unusable(f"{url}: the answer is not in the format of {server}") from None


def error_text(response: requests.Response) -> str:
    """Return the server's words: {"error": text} from Ollama, {"error": {"message": text}} from others."""
    try:
        error = response.json()["error"]
        return shown(error["message"] if isinstance(error, dict) else error)
    except (requests.JSONDecodeError, RecursionError, KeyError, TypeError):
        return shown(response.reason)


def shown(words: object) -> str:
    """Return the beginning of a server's `words`, for an error line."""
    text = str(words)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def answer_in(text: str, thinking: str | None, tokens: int, logprobs: list[dict[str, Any]] | None) -> Answer:
    """Return the Answer in what a model wrote: a JSON object, or what stands behind a thought. `thinking`: what the
    server has taken for a thought itself. Unusable if there is nothing but a thought."""
    if not text.lstrip().startswith("{"):
        before, end, after = text.rpartition(CLOSE)
        if end or OPEN in text:
            thinking, text = thinking or before or text, after if end else ""
    if thinking and not text.strip():
        raise Unusable(THINKS)
    return Answer(text, tokens, None if thinking else logprobs, bool(thinking))


def broken_off(reason: str, text: str, thinking: str | None) -> Unusable:
    """Return the error of an answer that is not whole; reason: the server's words."""
    thinks = f"{THINKS}: " if thinking or OPEN in text else ""
    return Unusable(f"{thinks}the answer was broken off: {reason}")


def chat_completion(request: ChatRequest, **body: Any) -> dict[str, Any]:
    """Return the body of an OpenAI chat completion as llama-server and vLLM read it, `body` included."""
    body |= {name: getattr(request, name) for name in ("messages", "temperature", "seed", "max_tokens")}
    body["chat_template_kwargs"] = {"enable_thinking": False}
    if request.schema is not None:
        json_schema = {"name": "answer", "schema": request.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": json_schema}
    if request.logprobs:
        body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
    return body


def read_completion(answer: dict[str, Any]) -> Answer:
    """Return the Answer in a chat completion; Unusable if it is incomplete."""
    try:
        choice, usage = answer["choices"][0], answer["usage"]
        message, reason = choice["message"], choice["finish_reason"]
        text, thinking = message["content"] or "", message.get("reasoning_content") or message.get("reasoning")
        if reason != "stop":
            raise broken_off(shown(reason), text, thinking)
        logprobs = (choice.get("logprobs") or {}).get("content")
        return answer_in(text, thinking, usage["prompt_tokens"] + usage["completion_tokens"], logprobs)
    except (KeyError, IndexError, TypeError):
        raise Unusable("the answer is no chat completion") from None
