"""The messages of a turn, as one text of a dataset: what stands between them is not what stands within them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from huiyin.common.lazy import polars as pl
from huiyin.common.tables import COMMA

if TYPE_CHECKING:
    from huiyin.questions.dataset import Record

Join = Callable[[Sequence[str]], str]  # the messages of a turn -> their text

LINE_BREAK = re.compile("[\n-\r\x1c-\x1e\x85\u2028\u2029]")  # what str.splitlines() splits at
BLANKS = re.compile(r"\s+")
# Letters and digits would join words and numbers to others, brackets can make a control token, other control characters
# than a line break look like a broken model, and blanks alone would take each word for a message.
Separator = Annotated[
    str,
    Meta(
        pattern=r"\A(?![^\S\n]+\Z)[^\w<>\[\]{}\x00-\x09\x0b-\x1f\x7f-\x9f]{1,8}\Z",
        description=r'1 to 8 characters, such as "\n" in double quotes: no letters, digits, brackets or blanks alone',
    ),
]


def joiner(separator: str, hide: Callable[[str], str] = str) -> Join:
    """Return the function that makes one text of the messages of a turn, with `separator` between them.

    `hide` is applied to each message: a number that begins in one and goes on in the next is none. If the separator is
    a line break, no message keeps one: white space that holds a line break becomes one blank.
    """
    split_lines = LINE_BREAK.search(separator)

    def joined(messages: Sequence[str]) -> str:
        return separator.join(hide(in_one_line(message) if split_lines else message) for message in messages)

    return joined


def in_one_line(message: str) -> str:
    return BLANKS.sub(lambda blanks: " " if LINE_BREAK.search(blanks[0]) else blanks[0], message)


def with_messages(samples: Sequence[Record], turns: pl.DataFrame, joined: Join) -> list[Record]:
    """Return the samples with the messages of their turns, `joined`, as prompt and reply; turns: of combine.

    A text that is not that of the turn is one message: a language model wrote it (the prompt in gen, or the reply in
    pair, of several turns), or somebody has changed it by hand.
    """
    turn_ids = {turn_id for sample in samples for turn_id in turns_in(sample)}
    texts = dict(turns.filter(pl.col("turn_id").is_in(list(turn_ids))).select("turn_id", "texts").iter_rows())

    def text_of(turn_id: int | None, text: str) -> str:
        messages = texts.get(turn_id, [])
        return joined(messages if COMMA.join(messages) == text else [text])

    found = []
    for sample in samples:
        prompt_turn, turn = turns_in(sample)
        both = {"prompt": text_of(prompt_turn, sample["prompt"]), "reply": text_of(turn, sample["reply"])}
        found.append({**sample, **both})
    return found


def turns_in(sample: Record) -> tuple[int | None, int | None]:
    """Return the ids of the turns whose texts the prompt and the reply are, None where a language model wrote it."""
    prompt_turn = None if sample["decided_by"] == "written" else sample["prompt_turn_id"]
    return prompt_turn, sample["turn_id"] if len(sample["turn_ids"]) == 1 else None
