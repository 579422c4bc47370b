"""Ask a language model many questions: bound by a schema, checked, journalled, a few at a time."""

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import ClassVar, Literal

import tenacity

from common.errors import Mistake
from common.progress import Progress
from common.settings import read_settings
from llm.backend import Unavailable, Unusable
from llm.journal import Journal, digest
from llm.ollama import Ollama

TRIES = 3
RETRY_TEMPERATURE = 0.5  # at temperature 0 another seed would only give the same answer again


@dataclass
class Settings:
    """config/llm.yaml"""

    backend: Literal["ollama", "embedded"] = "ollama"
    url: str = "auto"
    allow_remote: bool = False
    model: str = "qwen2.5:14b"
    num_ctx: int = 4096
    parallel: int = 4
    pair_temperature: float = 0.0
    gen_temperature: float = 0.8
    read_timeout_seconds: float = 600.0

    PRESETS: ClassVar = {"default": {}}


@dataclass
class Question:
    """A prompt, the JSON schema of the answer, and `accept`: parsed answer -> value, ValueError if it is no good."""

    prompt: str
    schema: dict
    accept: Callable
    temperature: float
    max_tokens: int


def llm_arguments(parser, answers=True):
    """Add what a stage needs to reach the model: `--llm`, `--ollama-url` and, to ask it much, `--answers`."""
    parser.add_argument("--llm", type=Path, required=True, metavar="FILE", help="llm.yaml")
    parser.add_argument("--ollama-url", default="http://127.0.0.1:11434", help="what `url: auto` means")
    if answers:
        parser.add_argument("--answers", type=Path, required=True, metavar="FILE", help="the journal, answers.db")


def read_llm_settings(args):
    return read_settings(args.llm, Settings)


def open_backend(settings, ollama_url):
    if settings.backend == "embedded":
        from llm.embedded import Embedded  # loads llama.cpp, which the other backends do without

        return Embedded(settings.model, settings.num_ctx, settings.parallel)
    return open_ollama(settings, ollama_url, settings.model, settings.num_ctx)


def open_ollama(settings, ollama_url, model, num_ctx):
    url = ollama_url if settings.url == "auto" else settings.url
    return Ollama(url, model, num_ctx, settings.read_timeout_seconds, settings.allow_remote)


def unload_model(settings, ollama_url):
    """Free the card of the language model, where a server of ours holds one."""
    if settings.backend == "ollama":
        open_ollama(settings, ollama_url, settings.model, settings.num_ctx).unload()


class Client:
    """Puts questions to a backend; every accepted answer is in the journal before it counts."""

    def __init__(self, backend, parallel, answers):
        self.backend, self.parallel = backend, parallel
        self.model = backend.identity()
        self.journal = Journal(answers)
        self.counts, self.lock = Counter(), Lock()

    def ask_all(self, name, questions):
        """Return the accepted values in the order of `questions`, None where no try gave a valid answer."""
        with Progress(name, len(questions), "questions") as progress, ThreadPoolExecutor(self.parallel) as pool:
            futures = [pool.submit(self.ask, question) for question in questions]
            try:
                for future in as_completed(futures):
                    future.result()
                    progress.add()
            except BaseException:
                pool.shutdown(cancel_futures=True)  # one that fails for good ends the stage, not 20,000 of them
                raise
        return [future.result() for future in futures]

    def ask(self, question):
        options = {"temperature": question.temperature, "max_tokens": question.max_tokens}
        key = digest(self.model, options, question.prompt, question.schema)
        known = self.journal.get(key)
        if known is not None:
            self.count("from_journal")
            return question.accept(json.loads(known))
        for attempt in range(TRIES):
            temperature = question.temperature if attempt == 0 else max(question.temperature, RETRY_TEMPERATURE)
            self.count("asked")
            try:
                answer = self.chat(question, temperature, seed=attempt)
                value = question.accept(json.loads(answer))
            except (Unusable, ValueError):
                continue
            self.journal.put(key, answer)
            return value
        self.count("failed")
        return None

    def chat(self, question, temperature, seed):
        """One request; a server that is busy or gone is asked again a little later."""
        patiently = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Unavailable), stop=tenacity.stop_after_attempt(TRIES),
            wait=tenacity.wait_exponential_jitter(initial=1, max=20), reraise=True)
        messages = [{"role": "user", "content": question.prompt}]
        try:
            return patiently(self.backend.chat, messages, question.schema, temperature, seed, question.max_tokens)
        except Unavailable as error:
            raise Mistake(f"the language model failed {TRIES} times: {error}; "
                          "what is answered is kept, start again to go on") from None

    def count(self, what):
        with self.lock:
            self.counts[what] += 1

    def close(self):
        self.journal.close()
