"""Ask a language model many questions, a few at a time; a schema restricts the answers, valid ones are cached."""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import msgspec
from msgspec import Meta

from huiyin.common.digests import digest
from huiyin.common.errors import UserError
from huiyin.common.progress import Progress
from huiyin.common.settings import ADDRESS, AtLeast1, Share, Temperature, Text, read_settings
from huiyin.llm.answer_cache import AnswerCache
from huiyin.llm.backend import ChatRequest, Rubbish, TooLong, Unavailable, Unusable
from huiyin.llm.confidence import confidence_of
from huiyin.llm.ollama import Ollama
from huiyin.llm.openai import OpenAI
from huiyin.llm.pool import Pool
from huiyin.llm.probe import check_form

TRIES = 3
RETRY_TEMPERATURE = 0.5  # at temperature 0 another seed would only give the same answer again
WAIT_SECONDS = 0.5  # after the first try that no server answers, and twice as long after each further one ...
JITTER_SECONDS = 0.5  # ... and at random up to this much longer, so that not all threads come back at once
ESTIMATE_AFTER = 20  # answers, from which the time for the rest is estimated
TOKENS_PER_CHARACTER = 0.7  # of Chinese chat, in the vocabularies of Qwen; for the estimate before the first answer
# What a backend or `Question.accept` raises for an answer that is not valid
INVALID = (Unusable, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
NOT_JSON, OTHER_FORM = "the answer is no whole JSON", "the answer is not in the form that was asked for"
FENCE = re.compile(r"\s*```(?:json)?\s*(.*?)\s*```\s*", re.DOTALL | re.IGNORECASE)  # in which some models write JSON

Url = Annotated[
    str, Meta(pattern=rf"^(auto|{ADDRESS})\Z", description="auto or an address such as http://127.0.0.1:11434")
]


@dataclass
class Settings:
    """config/llm.yaml"""

    backend: Literal["ollama", "openai", "embedded"] = "ollama"
    url: Url | Annotated[list[Url], Meta(min_length=1)] = "auto"
    allow_remote: bool = False
    model: Text = "qwen2.5:14b"
    num_ctx: AtLeast1 = 4096
    parallel: Annotated[int, Meta(ge=1, le=256)] = 4
    threads: Annotated[int, Meta(ge=0, le=512)] = 0
    pair_temperature: Temperature = 0.0
    gen_temperature: Temperature = 0.8
    read_timeout_seconds: Annotated[float, Meta(gt=0, le=86_400)] = 120.0
    max_failed_share: Share = 0.01
    max_failures_in_a_row: AtLeast1 = 20

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"default": {}}
    # where and how fast the model is asked: its answers are the same
    WITHOUT_EFFECT: ClassVar[set[str]] = {"url", "allow_remote", "parallel", "threads", "read_timeout_seconds"}


@dataclass
class Question:
    """What is asked: `system`, the part that all questions share, so that the server keeps it, and `user`, the rest.

    schema: JSON schema of the answer. accept: decoded answer -> value; Unusable says why it is not valid. choices: the
    values among which the answer's one string is, where a confidence is wanted. tries: how often it is asked at most,
    with the seeds `seed`, `seed` + 1, ... A question that does not fit into the context is answered by `TooLong` if it
    `may_be_split`, otherwise it is `UserError`. unnamed: `user` without the names of members, where it shows some: with
    other names it is the same question for the answer cache. time: of the newest turn that it is about.
    """

    system: str
    user: str
    schema: dict[str, Any]
    accept: Callable[[Any], Any]
    temperature: float
    max_tokens: int
    choices: list[str] | None = None
    tries: int = TRIES
    seed: int = 0
    may_be_split: bool = False
    unnamed: str = ""
    time: datetime | None = None

    def size(self) -> int:
        """Return about how much of the context question and answer need."""
        return len(self.system) + len(self.user) + self.max_tokens


# What the answer cache holds of an answer: its text, and its confidence
Entry = tuple[str, Annotated[float, Meta(ge=0, le=1)] | None]


class Accepted(NamedTuple):
    """A valid answer: what `Question.accept` made of it, and the probability of the choice, if there is one."""

    value: Any
    confidence: float | None


Result = Accepted | type[TooLong] | None  # of a question; None: no try gave a valid answer


def llm_arguments(parser: argparse.ArgumentParser, answers: bool = True) -> None:
    """Add the options with which a command reaches the model: `--llm`, `--ollama-url` and `--answers`."""
    parser.add_argument("--llm", type=Path, required=True, metavar="FILE", help="llm.yaml")
    ollama_url_argument(parser)
    if answers:
        parser.add_argument("--answers", type=Path, required=True, metavar="FILE", help="the answer cache, answers.db")


def ollama_url_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ollama-url", default="http://127.0.0.1:11434", help="what `auto` means in the settings")


def read_llm_settings(args: argparse.Namespace) -> Settings:
    return read_settings(args.llm, Settings)


def addresses(settings: Settings, ollama_url: str) -> list[str]:
    """Return the urls of the servers; `ollama_url` is that of `auto`."""
    urls = settings.url if isinstance(settings.url, list) else [settings.url]
    return [ollama_url if url == "auto" else url for url in urls]


def open_pool(settings: Settings, ollama_url: str) -> Pool:
    if settings.backend == "embedded":
        from huiyin.llm.embedded import Embedded  # loads llama.cpp, which the other backends do not need

        return Pool([Embedded(settings.model, settings.num_ctx, settings.parallel, settings.threads)])
    if settings.backend == "openai" and settings.url == "auto":
        raise UserError("llm.yaml: backend openai needs the url of its server, such as http://127.0.0.1:8000")
    backend = OpenAI if settings.backend == "openai" else Ollama
    urls = addresses(settings, ollama_url)
    options = settings.read_timeout_seconds, settings.allow_remote, settings.parallel * len(urls)
    return Pool([backend(url, settings.model, settings.num_ctx, *options) for url in urls])


def unload_model(settings: Settings, ollama_url: str) -> None:
    """Free the cards of the language model, on each server of Ollama's that holds it."""
    for url in addresses(settings, ollama_url) if settings.backend == "ollama" else []:
        with contextlib.suppress(Unavailable):
            Ollama(url, settings.model, allow_remote=settings.allow_remote).unload()


class Client:
    """Asks the model; every valid answer is in the answer cache before it counts. The model is looked for when the
    first question comes: without questions there need not be one."""

    pool: Pool  # `open` sets these three
    model: str
    cache: AnswerCache

    def __init__(self, settings: Settings, ollama_url: str, answers: Path) -> None:
        self.settings, self.ollama_url, self.answers = settings, ollama_url, answers
        self.opened = self.prepared = False
        self.counts: Counter[str] = Counter()  # as the receipt names them
        self.seconds = 0.0
        self.lock, self.stopped = threading.Lock(), threading.Event()
        self.failures_in_a_row = 0  # since the last valid answer
        self.last_failure = Exception()  # what `count_failure` was given last
        self.known_until: str | None = None  # time of the newest turn that was there the last time
        self.old: Counter[bool] = Counter()  # questions about no newer turn; were they in the answer cache?

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        if self.opened:
            self.cache.close()

    def open(self) -> None:
        self.pool = open_pool(self.settings, self.ollama_url)
        self.model = self.pool.identity()
        self.cache = AnswerCache(self.answers)
        self.opened = True

    def receipt(self) -> dict[str, Any]:
        """Return what a stage's receipt says of the model, {} if it was not needed."""
        if not self.opened:
            return {}
        return {"llm": {"model": self.model, **self.counts, "seconds": round(self.seconds, 3)}}

    def say_share_of_old(self, name: str) -> None:
        """Print how many of the questions about what was there the last time came from the answer cache."""
        if total := self.old.total():
            print(
                f"{name}: of {total:,} questions about what was there the last time, {self.old[True]:,} "
                f"({self.old[True] / total:.1%}) are answered from the answer cache",
                flush=True,
            )

    def count_old(self, question: Question, cached: bool) -> None:
        if self.known_until and question.time and question.time <= datetime.fromisoformat(self.known_until):
            self.old[cached] += 1

    def recall(self, name: str, questions: list[Question]) -> list[Result]:
        """Return what the answer cache has for each of `questions`, None where it has nothing, and ask none of them."""
        if not questions:
            return []
        if not self.opened:
            self.open()
        results = [self.cached(self.key(question), question) for question in questions]
        found = sum(result is not None for result in results)
        for question, result in zip(questions, results, strict=True):
            self.count_old(question, result is not None)
        self.counts["from_journal"] += found
        if found:
            print(f"{name}: {found:,} of {len(questions):,} are answered from the answer cache", flush=True)
        return results

    def remember(self, answers: Iterable[tuple[Question, Any]]) -> None:
        """Put answers to questions that were not asked alone into the answer cache: all, or after a kill none."""
        if not self.opened:  # there were no questions
            return
        texts = ((self.key(question), json.dumps(answer, ensure_ascii=False)) for question, answer in answers)
        self.cache.put_all((key, json.dumps([text, None], ensure_ascii=False)) for key, text in texts)

    def ask_all(
        self, name: str, questions: list[Question], note: str = "", final: bool = True, total: int = 0
    ) -> list[Result]:
        """Return the Accepted answer to each of `questions`, None where no try gave a valid one, and TooLong (the
        class) where it does not fit into the context.

        note: what the progress says besides. final: nobody will ask again, so that more failures than
        `max_failed_share` are `UserError`. total: questions that the share counts, where several calls belong together.
        """
        if not questions:
            return []
        if not self.opened:
            self.open()
        keys = [self.key(question) for question in questions]
        by_key = dict(zip(keys, questions, strict=True))
        results: dict[str, Result] = {
            key: answer for key, question in by_key.items() if (answer := self.cached(key, question))
        }
        to_ask = {key: question for key, question in by_key.items() if key not in results}
        for key, question in by_key.items():
            self.count_old(question, key in results)
        self.counts["from_journal"] += len(results)  # the field of receipts for the answer cache
        tokens = TOKENS_PER_CHARACTER * sum(question.size() for question in to_ask.values())
        cached = f" and {len(results):,} answered from the answer cache" if results else ""
        print(f"{name}: {len(to_ask):,} questions to ask{cached}, about {tokens:,.0f} tokens", flush=True)
        if to_ask:
            notes = [note, f"{len(results) / len(by_key):.0%} from the answer cache" if results else ""]
            longest = max(by_key, key=lambda key: by_key[key].size())
            results |= self.ask_uncached(name, to_ask, longest, " and ".join(filter(None, notes)), final, total)
        return [results[key] for key in keys]

    def ask_uncached(
        self, name: str, questions: dict[str, Question], longest: str, note: str, final: bool, total: int
    ) -> dict[str, Result]:
        """Return {key: result} of `questions`, {key: Question}. The one with the key `longest` goes first and alone, so
        that a context which is too small shows at once."""
        self.prepare(questions.values())
        results: dict[str, Result] = {}
        failed, started, tokens_before = 0, time.monotonic(), self.counts["tokens"]
        threads = ThreadPoolExecutor(self.settings.parallel * len(self.pool.backends))
        with Progress(name, len(questions), "questions") as progress, threads:
            try:
                for wave in ([longest], [key for key in questions if key != longest]):
                    futures = {threads.submit(self.ask, key, questions[key]): key for key in wave if key in questions}
                    for future in as_completed(futures):
                        results[futures[future]] = result = future.result()
                        failed += result is None
                        if final:
                            self.check_failures(failed, max(total, len(questions)))
                        show(progress, time.monotonic() - started, self.counts["tokens"] - tokens_before, note)
            except BaseException:
                self.stopped.set()  # ends the waits of `ask`
                threads.shutdown(cancel_futures=True)  # one error ends the stage, without the other 20,000 questions
                raise
        self.seconds += time.monotonic() - started
        return results

    def prepare(self, questions: Iterable[Question]) -> None:
        """Load the model, the first time, and see whether it keeps to the form of answers such as to `questions`."""
        if not self.prepared:
            self.pool.prepare()
            check_form(self.pool, self.settings.model, any(question.choices for question in questions))
            self.prepared = True

    def check_failures(self, failed: int, questions: int) -> None:
        """`UserError` if more of the questions failed than a dataset may silently leave out."""
        if failed > self.settings.max_failed_share * questions:
            raise UserError(
                f"{failed:,} of {questions:,} questions had no valid answer in {TRIES} tries (the last: "
                f"{why(self.last_failure)}), more than max_failed_share in llm.yaml allows; "
                f"{self.advice()}what is answered is kept"
            )

    def key(self, question: Question, named: bool = False) -> str:
        """Return the key in the answer cache: the same model and the same words and options give the same answer.
        named: the key that earlier versions gave it, with the names."""
        options = {"temperature": question.temperature, "max_tokens": question.max_tokens}
        options["confidence"] = question.choices is not None
        text = question.user if named else question.unnamed or question.user
        return digest(self.model, options, question.system, text, question.schema)

    def too_long(self, key: str) -> str:
        """Return the key under which the answer cache notes that a question does not fit into the context."""
        return digest("too long", self.settings.num_ctx, key)

    def cached(self, key: str, question: Question) -> Result:
        for kept in (key, self.key(question, named=True)):
            if question.may_be_split and self.cache.get(self.too_long(kept)):
                return TooLong
            # accepted under older rules, or not written by us: it is asked anew
            with contextlib.suppress(*INVALID, msgspec.MsgspecError):
                if entry := self.cache.get(kept):
                    text, confidence = msgspec.json.decode(entry, type=Entry)
                    accepted = Accepted(question.accept(json.loads(text)), confidence)
                    if kept != key:
                        self.cache.put(key, entry.decode())
                    return accepted
        return None

    def ask(self, key: str, question: Question) -> Result:
        """Ask until there is a valid answer: `question.tries` times at most, or TRIES times if no server answers. Each
        try has a seed of its own; after an answer that is not valid, the temperature is raised."""
        temperature = question.temperature
        for attempt in range(TRIES):
            if self.stopped.is_set():
                raise UserError("stopped")  # never shown: what stopped it is
            try:
                text, accepted = self.try_once(question, temperature, question.seed + attempt)
            except TooLong as error:
                if question.may_be_split:
                    self.cache.put(self.too_long(key), "true")
                    return TooLong
                raise UserError(f"{error}; raise num_ctx in llm.yaml or show less (pair.yaml, gen.yaml)") from None
            except Unavailable as error:
                self.count_failure(error)
                if attempt + 1 < TRIES:
                    self.stopped.wait(WAIT_SECONDS * 2**attempt + random.uniform(0, JITTER_SECONDS))
            except INVALID as error:
                self.count_failure(error)
                if attempt + 1 >= question.tries:
                    break
                temperature = max(temperature, RETRY_TEMPERATURE)
            else:
                self.cache.put(key, json.dumps([text, accepted.confidence], ensure_ascii=False))
                with self.lock:
                    self.failures_in_a_row = 0
                return accepted
        with self.lock:
            self.counts["failed"] += 1
        return None

    def try_once(self, question: Question, temperature: float, seed: int) -> tuple[str, Accepted]:
        """Return the text of an answer, and what it means. Raises Unavailable, TooLong or INVALID."""
        texts = (("system", question.system), ("user", question.user))
        messages = [{"role": role, "content": text} for role, text in texts if text]
        with self.lock:
            self.counts["asked"] += 1
        answer = self.pool.chat(
            ChatRequest(messages, question.schema, temperature, seed, question.max_tokens, question.choices is not None)
        )
        with self.lock:
            self.counts["tokens"] += answer.tokens
        answer = answer._replace(text=without_fence(answer.text))
        content = json.loads(answer.text)
        json.dumps(content, ensure_ascii=False).encode()  # half a character, written as an escape, is no text
        return answer.text, Accepted(question.accept(content), confidence_of(answer, question.choices))

    def count_failure(self, error: Exception) -> None:
        """Count a failure; `UserError` if there are so many in a row that it is no chance."""
        with self.lock:
            self.failures_in_a_row += 1
            self.last_failure = error
            if self.failures_in_a_row >= self.settings.max_failures_in_a_row:
                raise UserError(
                    f"the language model failed {self.failures_in_a_row} times in a row, the last time: {why(error)}; "
                    f"{self.advice()}what is answered is kept, start again to go on"
                ) from None

    def advice(self) -> str:
        """Return what to do about the last failure, where another setting would not help."""
        if isinstance(self.last_failure, Rubbish):
            return "take a larger model in llm.yaml; "
        if why(self.last_failure) not in (NOT_JSON, OTHER_FORM):
            return ""
        return "this model does not keep to the form it is given, take another model in llm.yaml; "


def without_fence(text: str) -> str:
    """Return `text` without the code fence that it may stand in."""
    fenced = FENCE.fullmatch(text)
    return fenced[1] if fenced else text


def why(error: Exception) -> str:
    """Return why an answer is not valid. Only our own texts: those of Python quote the answer."""
    if isinstance(error, Unusable | Unavailable):
        return str(error)
    return NOT_JSON if isinstance(error, json.JSONDecodeError) else OTHER_FORM


def show(progress: Progress, seconds: float, tokens: int, note: str) -> None:
    """Show one more answer; `seconds` and `tokens` are those of all answers so far."""
    progress.note = ", ".join(filter(None, [f"{tokens / seconds:,.0f} tokens/s", note]))
    progress.add()
    if progress.done == ESTIMATE_AFTER and progress.total:
        minutes = seconds / 60 * (progress.total / ESTIMATE_AFTER - 1)
        tokens_each = tokens / ESTIMATE_AFTER
        print(f"{progress.name}: about {minutes:,.1f} minutes to go, {tokens_each:,.0f} tokens a question", flush=True)
