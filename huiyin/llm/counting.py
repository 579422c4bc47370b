"""A dry run of the stages that ask: the questions are counted, and some of them asked, to see how long they take."""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

from huiyin.common.errors import UserError
from huiyin.llm.answer_cache import AnswerCache
from huiyin.llm.backend import Unavailable, Unusable
from huiyin.llm.client import TOKENS_PER_CHARACTER, Client, Question, Result, Settings

MOST = 200  # questions that are asked to see how long they take


def dry_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="count the questions; the results are no use")
    parser.add_argument("--probe", type=float, default=0.0, metavar="SECONDS", help="of a dry run, in which it asks")


def new_client(args: argparse.Namespace, settings: Settings) -> Client:
    if args.dry_run:
        return Counting(settings, args.ollama_url, args.answers, args.probe)
    return Client(settings, args.ollama_url, args.answers)


class Counting(Client):
    """Counts the questions whose answer is not in the cache, `to_ask`, and about how many tokens they have. For at most
    `probe` seconds it asks some; what is answered is in the cache then, and not asked again. Others have no answer."""

    def __init__(self, settings: Settings, ollama_url: str, answers: Path, probe: float) -> None:
        super().__init__(replace(settings, read_timeout_seconds=max(1.0, probe)), ollama_url, answers)
        self.probe = probe
        self.spent = 0.0  # seconds, of these
        self.problem = ""  # why the model cannot be asked

    def open(self) -> None:
        try:
            super().open()
        except UserError as error:
            self.problem, self.model, self.opened = str(error), "", True
            self.cache = AnswerCache(self.answers)

    def ask_uncached(
        self, name: str, questions: dict[str, Question], longest: str, note: str, final: bool, total: int
    ) -> dict[str, Result]:
        self.counts["to_ask"] += len(questions)
        self.counts["tokens_to_ask"] += round(TOKENS_PER_CHARACTER * sum(each.size() for each in questions.values()))
        results: dict[str, Result] = dict.fromkeys(questions)
        if self.probe > self.spent and not self.problem:
            started = time.monotonic()
            self.ask_some(questions, results, started + self.probe - self.spent)
            self.spent += time.monotonic() - started
        return results

    def ask_some(self, questions: dict[str, Question], results: dict[str, Result], until: float) -> None:
        """Load the model and ask up to MOST of the questions, as long as answers can be there at `until`."""
        keys = list(questions)[:: len(questions) // MOST + 1]
        slowest = 0.0

        def ask() -> None:
            nonlocal slowest
            while keys and (begun := time.monotonic()) + slowest < until:
                key = keys.pop()
                results[key] = self.ask(key, questions[key])
                slowest = max(slowest, time.monotonic() - begun)
                self.counts["probed"] += 1
                self.counts["answered"] += results[key] is not None

        self.run([lambda: self.prepare(questions.values())], until)
        if not self.prepared:
            self.problem = self.problem or "the model is not loaded yet"
            return
        started = time.monotonic()
        self.run([ask] * self.settings.parallel * len(self.pool.backends), until)
        self.seconds += time.monotonic() - started

    def run(self, works: Sequence[Callable[[], None]], until: float) -> None:
        """Run `works` beside each other until they end, or until `until`: an answer that is waited for then does not
        keep the program from ending. llama.cpp within it would be torn down under its feet: it is waited for."""

        def work(run: Callable[[], None]) -> None:
            try:
                run()
            except (UserError, Unavailable, Unusable) as error:
                self.problem = str(error)

        threads = [Thread(target=work, args=(each,), daemon=True) for each in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            embedded = self.settings.backend == "embedded"
            thread.join(None if embedded else max(0.0, until - time.monotonic()))

    def check_failures(self, failed: int, questions: int) -> None:
        """Do nothing: what is not asked has not failed."""

    def receipt(self) -> dict[str, Any]:
        """Return what a receipt says of the model: `seconds` of the questions, `probe_seconds` with loading it."""
        said = super().receipt()
        if said:
            said["llm"] |= {"probe_seconds": round(self.spent, 3), "problem": self.problem}
        return said
