"""One or several servers of the same model: work is spread over them; one that fails rests and is tried again."""

import threading
import time

from huiyin.common.errors import UserError
from huiyin.llm.backend import NoServer, Unavailable, Unusable

REST_SECONDS = 30


class Pool:
    """Answers like the backends it is made of. A lone server never rests: there is nobody to take its place."""

    def __init__(self, backends, rest_seconds=REST_SECONDS):
        self.backends, self.rest_seconds = backends, rest_seconds
        self.lock = threading.Lock()
        self.asked = dict.fromkeys(range(len(backends)), 0)  # requests under way
        self.rested_at = dict.fromkeys(range(len(backends)), 0.0)  # when each may be asked again
        self.known, self.ready, self.model = set(), set(), None

    def identity(self):
        """The identity of the model, which all servers must share; NoServer where none answers."""
        missing = None
        for place in range(len(self.backends)):
            try:
                self.check(place)
            except (Unavailable, Unusable) as error:
                missing = error
                self.rest(place)
        if not self.known:
            raise missing if isinstance(missing, NoServer) else NoServer(str(missing))
        return self.model

    def check(self, place):
        """Ask a server, once, who it is."""
        if place not in self.known:
            found = self.backends[place].identity()
            if self.model not in (None, found):
                raise UserError(
                    f"{self.backends[place].url} has another model under that name than "
                    f"{self.backends[min(self.known)].url}; pull the same one to all of them"
                )
            self.model = found
            self.known.add(place)

    def prepare(self):
        """Have every server that answers load the model; NoServer where none does."""
        failure = None
        for place in sorted(self.known):
            try:
                self.backends[place].prepare()
                self.ready.add(place)
            except Unavailable as error:
                failure = error
                self.rest(place)
        if not self.ready:
            raise NoServer(f"{failure}; the model cannot be loaded")

    def chat(self, *question, **options):
        """Ask the server with the least to do, or, if all rest, the one which rests longest already."""
        with self.lock:
            now = time.monotonic()
            place = min(self.asked, key=lambda place: (max(0.0, self.rested_at[place] - now), self.asked[place]))
            self.asked[place] += 1
        try:
            if place not in self.ready:  # back again, or here at last
                self.check(place)
                self.backends[place].prepare()
                self.ready.add(place)
            return self.backends[place].chat(*question, **options)
        except Unavailable:
            self.rest(place)
            raise
        finally:
            with self.lock:
                self.asked[place] -= 1

    def rest(self, place):
        self.ready.discard(place)
        self.rested_at[place] = time.monotonic() + self.rest_seconds
