"""What the backends share: their answer, their errors, and HTTP that stays on this machine or its private network."""

import ipaddress
import re
import socket
from typing import NamedTuple
from urllib.parse import urlsplit

from huiyin.common.errors import UserError
from huiyin.common.lazy import requests

CONNECT_SECONDS = 5
TOP_LOGPROBS = 12  # the likeliest tokens at each place, for the confidence: 10 candidates, none, and one more
TOO_LONG = re.compile(r"context (size|length|window)|exceed_context_size|maximum context", re.IGNORECASE)
BUSY = {408, 429}  # statuses below 500 that pass


class Answer(NamedTuple):
    text: str
    tokens: int  # of the prompt and of the answer
    logprobs: list | None = None  # [{"token", "logprob", "top_logprobs": [...]}, ...] as OpenAI and Ollama write it


# Loopback, private, link-local. Python's is_private holds more: 198.18.0.0/15, say, which proxies give for any name.
OWN = [
    ipaddress.ip_network(network)
    for network in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
]


class Unusable(Exception):
    """The server answered, but not with a whole answer; another seed may do better."""


class Unavailable(Exception):
    """The server did not answer, or could not; the same request may succeed a little later."""


class NoServer(Unavailable, UserError):
    """Nobody answers at that address: a mistake of the user's, unless another server can do the work."""


class TooLong(Exception):
    """Question and answer together do not fit into the context of the model."""


def session_for(url, allow_remote, connections):
    """Return a `requests.Session` for the server at `url`; a public address needs `allow_remote`."""
    host = urlsplit(url).hostname
    if not host:
        raise UserError(f"llm.yaml: url {url!r} is no address; write it like http://127.0.0.1:11434")
    try:
        addresses = {ipaddress.ip_address(found[4][0].split("%")[0]) for found in socket.getaddrinfo(host, None)}
    except socket.gaierror:
        raise UserError(f"llm.yaml: url {url}: there is no host {host!r}; is it running, is the name right?") from None
    local = all(any(address in network for network in OWN) for address in addresses)
    if not local and not allow_remote:
        raise UserError(
            f"llm.yaml: {url} is outside your own network and would see your chats; "
            "set allow_remote: true if that is what you want"
        )
    session = requests.Session()
    session.trust_env = not local  # a proxy must never see calls to our own servers
    session.mount("http", requests.adapters.HTTPAdapter(pool_maxsize=connections))
    return session


def send(session, method, url, read_seconds, body=None):
    """Send `body` as JSON and return the decoded answer.

    Raises Unavailable (no connection, a broken one, time-out, busy, 5xx), TooLong, Unusable (no JSON in a whole
    answer) or UserError (any other 4xx: the request itself is wrong).
    """
    try:
        response = session.request(
            method, url, json=body, timeout=(CONNECT_SECONDS, read_seconds), allow_redirects=False
        )
    except requests.RequestException as error:
        raise Unavailable(f"{url}: {type(error).__name__}") from None
    if response.status_code >= 500 or response.status_code in BUSY:
        raise Unavailable(f"{url}: status {response.status_code}, {error_text(response)}")
    if 300 <= response.status_code < 400:  # wherever that leads, it may be outside
        raise UserError(f"{url} sends us on to {response.headers.get('Location')}; set the url of the server itself")
    if response.status_code >= 400:
        text = error_text(response)
        if TOO_LONG.search(text):
            raise TooLong(f"{url}: {text}")
        raise UserError(f"{url} refuses the request with status {response.status_code}: {text}")
    try:
        return response.json()
    except requests.JSONDecodeError:
        raise Unusable(f"{url}: the answer is no JSON") from None


def error_text(response):
    """The server's own words; Ollama sends {"error": text}, OpenAI-compatible servers {"error": {"message": text}}."""
    try:
        error = response.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (requests.JSONDecodeError, KeyError, TypeError):
        return response.reason


def check_not_thinking(thinking, text):
    if thinking or "<think>" in text:
        raise Unusable("the model thinks aloud although it was told not to")


def chat_completion(body_of_model, messages, schema, temperature, seed, max_tokens, logprobs):
    """Return the body of an OpenAI chat completion, as llama-server and vLLM take it."""
    bound = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    return {
        **body_of_model,
        "messages": messages,
        "temperature": temperature,
        "seed": seed,
        "max_tokens": max_tokens,
        "chat_template_kwargs": {"enable_thinking": False},
        **({} if schema is None else {"response_format": bound}),
        **({"logprobs": True, "top_logprobs": TOP_LOGPROBS} if logprobs else {}),
    }


def read_completion(answer):
    """Return the Answer in a chat completion; Unusable if it was broken off."""
    try:
        choice, usage = answer["choices"][0], answer["usage"]
        message, reason = choice["message"], choice["finish_reason"]
        if reason != "stop":
            raise Unusable(f"the answer was broken off: {reason}")
        text = message["content"] or ""
        check_not_thinking(message.get("reasoning_content"), text)
        logprobs = (choice.get("logprobs") or {}).get("content")
        return Answer(text, usage["prompt_tokens"] + usage["completion_tokens"], logprobs)
    except (KeyError, IndexError, TypeError):
        raise Unusable("the answer is no chat completion") from None
