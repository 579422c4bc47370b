"""One or several servers of the same model: work is spread over them; one that fails rests and is tried again."""

import threading
import time
from collections.abc import Sequence

from huiyin.common.errors import UserError
from huiyin.llm.backend import Answer, Backend, ChatRequest, NoServer, Unavailable, Unusable

REST_SECONDS = 30


class Pool:
    """Answers like the `backends` it consists of, which are known by their index. With one server alone, resting has no
    effect: no other can replace it."""

    def __init__(self, backends: Sequence[Backend], rest_seconds: float = REST_SECONDS) -> None:
        self.backends, self.rest_seconds = backends, rest_seconds
        self.lock = threading.Lock()
        self.under_way = [0] * len(backends)  # requests that are not answered yet
        self.rests_until = [0.0] * len(backends)
        self.identified: set[int] = set()
        self.ready: set[int] = set()  # have loaded the model
        self.model: str | None = None

    def identity(self) -> str:
        """Return the identity of the model, which all servers must share; NoServer where none answers."""
        failure: Exception | None = None
        for index in range(len(self.backends)):
            try:
                self.check(index)
            except (Unavailable, Unusable) as error:
                failure = error
                self.rest(index)
        if self.model is None:
            raise failure if isinstance(failure, NoServer) else NoServer(str(failure))
        return self.model

    def check(self, index: int) -> None:
        """Ask a server, once, for the identity of its model; `UserError` if it differs from that of the others."""
        if index not in self.identified:
            model = self.backends[index].identity()
            if self.model not in (None, model):
                raise UserError(
                    f"{self.backends[index].url} has another model under that name than "
                    f"{self.backends[min(self.identified)].url}; pull the same one to all of them"
                )
            self.model = model
            self.identified.add(index)

    def prepare(self) -> None:
        """Let every server that answers load the model; NoServer where none does."""
        failure: Exception | None = None
        for index in sorted(self.identified):
            try:
                self.backends[index].prepare()
                self.ready.add(index)
            except (Unavailable, Unusable) as error:
                failure = error
                self.rest(index)
        if not self.ready:
            raise NoServer(f"{failure}; the model cannot be loaded")

    def chat(self, request: ChatRequest) -> Answer:
        """Ask the server with the fewest requests under way; if all rest, the one whose rest ends first."""
        with self.lock:
            now = time.monotonic()
            waits = [max(0.0, until - now) for until in self.rests_until]
            index = min(range(len(waits)), key=lambda index: (waits[index], self.under_way[index]))
            self.under_way[index] += 1
        try:
            if index not in self.ready:  # after a rest, or after it did not answer at the start
                self.check(index)
                self.backends[index].prepare()
                self.ready.add(index)
            return self.backends[index].chat(request)
        except Unavailable:
            self.rest(index)
            raise
        finally:
            with self.lock:
                self.under_way[index] -= 1

    def rest(self, index: int) -> None:
        self.ready.discard(index)
        self.rests_until[index] = time.monotonic() + self.rest_seconds
