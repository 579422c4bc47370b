"""What the backends share: their errors, and HTTP that stays on this machine or its private network."""

import ipaddress
import socket
from urllib.parse import urlsplit

import requests

from common.errors import Mistake

CONNECT_SECONDS = 5


class Unusable(Exception):
    """The server answered, but not with a whole answer; another seed may do better."""


class Unavailable(Exception):
    """The server did not answer, or could not; the same request may succeed a little later."""


def session_for(url, allow_remote):
    """Return a `requests.Session` for the server at `url`; a public address needs `allow_remote`."""
    host = urlsplit(url).hostname
    if not host:
        raise Mistake(f"llm.yaml: url {url!r} is no address; write it like http://127.0.0.1:11434")
    try:
        addresses = {ipaddress.ip_address(found[4][0].split("%")[0]) for found in socket.getaddrinfo(host, None)}
    except socket.gaierror:
        raise Mistake(f"llm.yaml: url {url}: there is no host {host!r}; is it running, is the name right?") from None
    local = all(address.is_private or address.is_loopback for address in addresses)
    if not local and not allow_remote:
        raise Mistake(f"llm.yaml: {url} is outside your own network and would see your chats; "
                      "set allow_remote: true if that is what you want")
    session = requests.Session()
    session.trust_env = not local  # a proxy must never see calls to our own servers
    return session


def post(session, url, body, read_seconds):
    """POST `body` as JSON and return the decoded answer.

    Raises Unavailable (no connection, time-out, 5xx) or Mistake (4xx: the request itself is wrong).
    """
    try:
        response = session.post(url, json=body, timeout=(CONNECT_SECONDS, read_seconds))
    except (requests.ConnectionError, requests.Timeout) as error:
        raise Unavailable(f"{url}: {type(error).__name__}") from None
    if response.status_code >= 500:
        raise Unavailable(f"{url}: status {response.status_code}, {error_text(response)}")
    if response.status_code >= 400:
        raise Mistake(f"{url} refuses the request with status {response.status_code}: {error_text(response)}")
    try:
        return response.json()
    except requests.JSONDecodeError:
        raise Unusable(f"{url}: the answer is no JSON") from None


def error_text(response):
    """The server's own words; Ollama sends {"error": text}, OpenAI-compatible servers {"error": {"message": text}}."""
    try:
        error = response.json()["error"]
        return error["message"] if isinstance(error, dict) else error
    except (requests.JSONDecodeError, KeyError, TypeError):
        return response.reason
