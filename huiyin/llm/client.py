"""Ask a language model many questions: bound by a schema, checked, journalled, a few at a time."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import tenacity

from huiyin.common.errors import UserError
from huiyin.common.progress import Progress
from huiyin.common.settings import AtLeast0, AtLeast1, read_settings
from huiyin.llm.answer_cache import AnswerCache, digest
from huiyin.llm.backend import TooLong, Unavailable, Unusable
from huiyin.llm.confidence import confidence_of
from huiyin.llm.ollama import Ollama
from huiyin.llm.openai import OpenAI
from huiyin.llm.pool import Pool

TRIES = 3
RETRY_TEMPERATURE = 0.5  # at temperature 0 another seed would only give the same answer again
FIRST_FEW = 20  # answers after which there is a first guess of the time it takes
TOKENS_PER_CHARACTER = 0.7  # of Chinese chat, in the vocabularies of Qwen; only for what is said beforehand


@dataclass
class Settings:
    """config/llm.yaml"""

    backend: Literal["ollama", "openai", "embedded"] = "ollama"
    url: str | list[str] = "auto"
    allow_remote: bool = False
    model: str = "qwen2.5:14b"
    num_ctx: AtLeast1 = 4096
    parallel: AtLeast1 = 4
    threads: AtLeast0 = 0
    pair_temperature: float = 0.0
    gen_temperature: float = 0.8
    read_timeout_seconds: float = 120.0
    max_failed_share: float = 0.01
    max_failures_in_a_row: AtLeast1 = 20

    PRESETS: ClassVar = {"default": {}}


@dataclass
class Question:
    """What is asked, the JSON schema of the answer, and `accept`: parsed answer -> value, ValueError if it is no good.

    `system` is what all questions share, so that the server reads it once. `choices`: the values among which the
    answer's one string is, if a confidence is wanted. `tries`, the first with the seed `seed`. One that
    `may_be_split` is answered with `TooLong` where it does not fit into the context; any other is `UserError` then.
    """

    system: str
    user: str
    schema: dict
    accept: Callable
    temperature: float
    max_tokens: int
    choices: list[str] | None = None
    tries: int = TRIES
    seed: int = 0
    may_be_split: bool = False


class Answered(NamedTuple):
    value: object
    confidence: float | None


def llm_arguments(parser, answers=True):
    """Add what a stage needs to reach the model: `--llm`, `--ollama-url` and, to ask it much, `--answers`."""
    parser.add_argument("--llm", type=Path, required=True, metavar="FILE", help="llm.yaml")
    parser.add_argument("--ollama-url", default="http://127.0.0.1:11434", help="what `url: auto` means")
    if answers:
        parser.add_argument("--answers", type=Path, required=True, metavar="FILE", help="the journal, answers.db")


def read_llm_settings(args):
    return read_settings(args.llm, Settings)


def addresses(settings, ollama_url):
    given = settings.url if isinstance(settings.url, list) else [settings.url]
    return [ollama_url if url == "auto" else url for url in given]


def open_pool(settings, ollama_url):
    if settings.backend == "embedded":
        from huiyin.llm.embedded import Embedded  # loads llama.cpp, which the other backends do without

        return Pool([Embedded(settings.model, settings.num_ctx, settings.parallel, settings.threads)])
    if settings.backend == "openai" and settings.url == "auto":
        raise UserError("llm.yaml: backend openai needs the url of its server, such as http://127.0.0.1:8000")
    kind = OpenAI if settings.backend == "openai" else Ollama
    urls = addresses(settings, ollama_url)
    return Pool(
        [
            kind(
                url,
                settings.model,
                settings.num_ctx,
                settings.read_timeout_seconds,
                settings.allow_remote,
                settings.parallel * len(urls),
            )
            for url in urls
        ]
    )


def open_ollama(settings, ollama_url, model, num_ctx):
    """Return the (first) Ollama server of the settings, for another model."""
    url = addresses(settings, ollama_url)[0]
    return Ollama(url, model, num_ctx, settings.read_timeout_seconds, settings.allow_remote)


def unload_model(settings, ollama_url):
    """Free the card of the language model, where a server of ours holds one."""
    if settings.backend == "ollama":
        open_ollama(settings, ollama_url, settings.model, settings.num_ctx).unload()


class Client:
    """Puts questions to the model; every accepted answer is in the journal before it counts.

    Without a question there need be no model, so it is looked for when the first is asked.
    """

    def __init__(self, settings, ollama_url, answers):
        self.settings, self.ollama_url, self.answers = settings, ollama_url, answers
        self.pool = self.journal = None
        self.counts, self.seconds, self.prepared = Counter(), 0.0, False
        self.lock, self.stopped = threading.Lock(), threading.Event()
        self.in_a_row = 0  # failures since the last accepted answer
        self.last_failure = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.journal:
            self.journal.close()

    def open(self):
        self.pool = open_pool(self.settings, self.ollama_url)
        self.parallel = self.settings.parallel * len(self.pool.backends)
        self.model = self.pool.identity()
        self.journal = AnswerCache(self.answers)

    def receipt(self):
        """What a stage's receipt says of the model, nothing if it was not needed."""
        if self.pool is None:
            return {}
        return {"llm": {"model": self.model, **self.counts, "seconds": round(self.seconds, 3)}}

    def ask_all(self, name, questions, aside="", final=True):
        """Return an Answered for each of `questions`; None where no try gave a valid answer, TooLong (the class)
        where it does not fit into the context.

        `aside`: what the progress says besides. `final`: what fails here fails for good, and more than
        `max_failed_share` of them is `UserError`.
        """
        if not questions:
            return []
        if self.pool is None:
            self.open()
        keys = [self.key(question) for question in questions]
        results = {}
        for key, question in zip(keys, questions, strict=True):
            if key not in results and (known := self.known(key, question)) is not None:
                results[key] = known
        self.counts["from_journal"] += len(results)
        ahead = {key: question for key, question in zip(keys, questions, strict=True) if key not in results}
        self.announce(name, len(results), ahead.values())
        if ahead:
            if not self.prepared:
                self.pool.prepare()
                self.prepared = True
            started = time.monotonic()
            notes = [aside, f"{len(results) / (len(results) + len(ahead)):.0%} from the journal" if results else ""]
            longest = max(dict(zip(keys, questions, strict=True)).items(), key=lambda item: size(item[1]))
            self.ask_open(name, ahead, longest, results, " and ".join(filter(None, notes)), final)
            self.seconds += time.monotonic() - started
        return [results[key] for key in keys]

    def announce(self, name, known, ahead):
        tokens = TOKENS_PER_CHARACTER * sum(map(size, ahead))
        journal = f" and {known:,} answered in the journal" if known else ""
        print(f"{name}: {len(ahead):,} questions to ask{journal}, about {tokens:,.0f} tokens", flush=True)

    def ask_open(self, name, ahead, longest, results, note, final):
        """Fill `results` with the answers to `ahead` ({key: question}); the longest goes first and alone, so that a
        context which is too small shows at once."""
        started, before = time.monotonic(), self.counts["tokens"]
        failed = 0
        with Progress(name, len(ahead), "questions") as progress, ThreadPoolExecutor(self.parallel) as pool:
            try:
                waves = [
                    [longest] if longest[0] in ahead else [],
                    [item for item in ahead.items() if item[0] != longest[0]],
                ]
                for wave in waves:
                    futures = {pool.submit(self.ask, key, question): key for key, question in wave}
                    for future in as_completed(futures):
                        results[futures[future]] = answer = future.result()
                        failed += answer is None
                        if final:
                            self.check_failures(failed, len(ahead))
                        rate = (self.counts["tokens"] - before) / (time.monotonic() - started)
                        progress.note = ", ".join(filter(None, [f"{rate:,.0f} tokens/s", note]))
                        progress.add()
                        if progress.done == FIRST_FEW:
                            seconds = (time.monotonic() - started) * (len(ahead) / FIRST_FEW - 1)
                            print(
                                f"{name}: about {seconds / 60:,.1f} minutes to go, "
                                f"{(self.counts['tokens'] - before) / FIRST_FEW:,.0f} tokens a question",
                                flush=True,
                            )
            except BaseException:
                self.stopped.set()  # whoever waits for a server need not wait on
                pool.shutdown(cancel_futures=True)  # one that fails for good ends the stage, not 20,000 of them
                raise

    def check_failures(self, failed, questions):
        """Too many failures are no dataset; so many that none or few are left out in silence."""
        if failed > self.settings.max_failed_share * questions:
            raise UserError(
                f"{failed:,} of {questions:,} questions had no valid answer in {TRIES} tries (the last: "
                f"{self.last_failure}), more than max_failed_share in llm.yaml allows; what is answered is "
                "kept"
            )

    def key(self, question):
        options = {
            "temperature": question.temperature,
            "max_tokens": question.max_tokens,
            "confidence": question.choices is not None,
        }
        return digest(self.model, options, question.system, question.user, question.schema)

    def known(self, key, question):
        entry = self.journal.get(key)
        if entry is None:
            return None
        text, confidence = json.loads(entry)
        try:
            return Answered(question.accept(json.loads(text)), confidence)
        except (ValueError, TypeError, KeyError, AttributeError):  # good enough once, not any more
            return None

    def ask(self, key, question):
        """Ask until there is a valid answer, at most `question.tries` times (a server that does not answer: TRIES)."""
        stop = tenacity.stop_after_attempt(TRIES) | (
            lambda state: isinstance(state.outcome.exception(), Refused) and state.attempt_number >= question.tries
        )
        retrying = tenacity.Retrying(
            stop=stop,
            retry=tenacity.retry_if_exception_type((Unavailable, Refused)),
            reraise=True,
            wait=patience,
            sleep=tenacity.sleep_using_event(self.stopped),
        )
        try:
            return retrying(self.try_once, key, question, Counter())
        except TooLong as error:
            if not question.may_be_split:
                raise UserError(f"{error}; raise num_ctx in llm.yaml or show less (pair.yaml, gen.yaml)") from None
            return TooLong
        except (Unavailable, Refused):
            with self.lock:
                self.counts["failed"] += 1
            return None

    def try_once(self, key, question, earlier):
        """One request, with a seed of its own; Unavailable or Refused if no valid answer comes of it."""
        if self.stopped.is_set():
            raise UserError("stopped")  # never shown: what stopped it is
        temperature = max(question.temperature, RETRY_TEMPERATURE) if earlier["refused"] else question.temperature
        seed = question.seed + earlier.total()
        messages = [
            {"role": role, "content": text}
            for role, text in (("system", question.system), ("user", question.user))
            if text
        ]
        with self.lock:
            self.counts["asked"] += 1
        try:
            answer = self.pool.chat(
                messages, question.schema, temperature, seed, question.max_tokens, logprobs=question.choices is not None
            )
            with self.lock:
                self.counts["tokens"] += answer.tokens
            content = json.loads(answer.text)
            json.dumps(content, ensure_ascii=False).encode()  # half a character, written as an escape, is no text
            value = question.accept(content)
        except Unavailable as error:
            earlier["unavailable"] += 1
            self.failure(error)
            raise
        except (Unusable, ValueError, TypeError, KeyError, AttributeError) as error:
            earlier["refused"] += 1
            reason = "the answer is no whole JSON" if isinstance(error, json.JSONDecodeError) else error
            self.failure(reason)
            raise Refused(reason) from None
        confidence = confidence_of(answer, question.choices)
        self.journal.put(key, json.dumps([answer.text, confidence], ensure_ascii=False))
        with self.lock:
            self.in_a_row = 0
        return Answered(value, confidence)

    def failure(self, error):
        """Count a failure; so many in a row that it is no chance end the stage."""
        with self.lock:
            self.in_a_row += 1
            self.last_failure = error
            if self.in_a_row >= self.settings.max_failures_in_a_row:
                raise UserError(
                    f"the language model failed {self.in_a_row} times in a row, the last time: {error}; "
                    "what is answered is kept, start again to go on"
                ) from None


class Refused(Exception):
    """There was an answer, but not a valid one."""


def size(question):
    return len(question.system) + len(question.user) + question.max_tokens


backing_off = tenacity.wait_exponential_jitter(multiplier=0.5, max=20, jitter=0.5)


def patience(state):
    """Seconds to wait: only for a server that did not answer."""
    return backing_off(state) if isinstance(state.outcome.exception(), Unavailable) else 0
