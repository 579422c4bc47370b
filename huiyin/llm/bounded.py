"""Connections on which an answer has a bound in seconds and in bytes, headers included.

The time-out of `requests` is that of one read: a server that sends a byte a second would never be given up. So what
http.client reads from the socket goes through `Bounded`.
"""

import io
from http.client import HTTPResponse
from typing import Any

import requests.adapters
from urllib3.connection import HTTPConnection, HTTPSConnection

from huiyin.llm.backend import CALL, Call, OutOfBounds


class Bounded(io.RawIOBase):
    """What comes from a socket through `raw`, until `call` is out of time or bytes."""

    def __init__(self, sock: Any, raw: Any, call: Call) -> None:
        self.sock, self.raw, self.call = sock, raw, call

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            self.sock.settimeout(self.call.seconds_left())
            count = self.raw.readinto(buffer)
        except TimeoutError:
            raise OutOfBounds(f"{self.call.url}: no whole answer within {self.call.seconds:g} s") from None
        self.call.received(count)
        return count

    def close(self) -> None:
        self.raw.close()
        super().close()


class Response(HTTPResponse):
    def __init__(self, sock: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        call = CALL.get()
        call.renew()  # the request is sent
        self.fp = io.BufferedReader(Bounded(sock, self.fp.detach(), call))  # type: ignore[attr-defined]

    def begin(self) -> None:
        super().begin()
        del self.headers["Content-Encoding"]  # nobody asked for it, and unpacked it could be of any size


class Sending:
    """A connection whose request may pause as long as the answer: `requests` allows it the seconds to connect."""

    response_class: Any = Response

    def send(self: Any, data: Any) -> None:
        if self.sock is None:
            self.connect()
        self.sock.settimeout(CALL.get().seconds)
        super().send(data)  # type: ignore[misc]


class Connection(Sending, HTTPConnection):
    pass


class SecureConnection(Sending, HTTPSConnection):
    pass


class Adapter(requests.adapters.HTTPAdapter):
    def get_connection_with_tls_context(self, *arguments: Any, **options: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*arguments, **options)
        pool.ConnectionCls = SecureConnection if pool.scheme == "https" else Connection
        return pool
