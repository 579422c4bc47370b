"""Prompts: one Markdown file each, with `$name` for each gap, and a line `---` between instructions and question."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from huiyin.common.control import harmless
from huiyin.common.errors import UserError
from huiyin.common.stage import read_text

NAME_CHARACTERS = 30
TOKENS_PER_CHARACTER = 3  # a byte-level vocabulary writes a Chinese character in up to 3 tokens
FRAME_TOKENS = 32  # braces, keys and quotes around one item of an answer

# Chat is shown between <tags>; no message can close one, or look like a line of the prompt. What the model repeats of a
# text is TYPED again.
HARMLESS, TYPED = str.maketrans("<>", "＜＞"), str.maketrans("＜＞", "<>")
INNER_QUOTES = str.maketrans('“”„"＂「」', "‘’‘’’『』")  # as Chinese writes quotes within quotes


NameOf = Callable[[dict[str, Any]], str]  # turn -> the name under which it is shown


@dataclass
class Prompt:
    """`system`: what all questions of a stage share, so that the server keeps it; `user`: the rest, with gaps."""

    system: str
    user: Template

    def fill(self, **gaps: str) -> tuple[str, str]:
        return self.system, self.user.substitute(gaps)


def read_prompt(path: Path, gaps: list[str], optional: Iterable[str] = ()) -> Prompt:
    """Return the Prompt in the file at `path`; `UserError` unless what follows its line `---` has exactly these `gaps`,
    of which the `optional` ones may be missing.

    A file without such a line consists of the question. `$$` stands for a dollar sign.
    """
    text = read_text(path, "write the prompt there, as UTF-8 text").strip()
    system, line, user = text.partition("\n---\n")
    system, user = (system.strip(), user.strip()) if line else ("", text)
    for part, where, allowed in ((system, "above ---", set()), (user, "here", set(gaps))):
        if not Template(part).is_valid():
            raise UserError(f"{path}: a `$` without a name; write `$$` for the sign itself")
        used = set(Template(part).get_identifiers())
        if used - allowed:
            raise UserError(f"{path}: ${min(used - allowed)} fills nothing {where}; take it out")
        if needed := allowed - used - {*optional}:
            raise UserError(f"{path}: ${min(needed)} is missing; put it where its text belongs")
    return Prompt(Template(system).substitute(), Template(user))


def one_line(text: str, limit: int) -> str:
    """Return `text` as one line of at most `limit` characters that cannot look like a part of the prompt."""
    text = harmless(" ".join(text.translate(HARMLESS).split()))
    return text if len(text) <= limit else text[:limit] + "…"


def name_of(turn: dict[str, Any]) -> str:
    return one_line(turn["nickname"], NAME_CHARACTERS)


class Numbers:
    """In place of `name_of`: the numbers of the members, in the order in which they appear. What is asked is the same
    whatever they are called, and so is its key in the answer cache."""

    def __init__(self) -> None:
        self.numbers: dict[str, str] = {}

    def __call__(self, turn: dict[str, Any]) -> str:
        return self.numbers.setdefault(turn["user_id"], str(len(self.numbers) + 1))


def name_in_quotes(turn: dict[str, Any]) -> str:
    """Return the nickname as a text that cannot end the quotes around it."""
    return name_of(turn).translate(INNER_QUOTES)


def object_schema(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
