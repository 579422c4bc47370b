"""The key of a database as people have it: with a blank or a line too much, in quotes, as bytes in hexadecimal.

Whether a key opens a database shows in milliseconds, so a key that does not is tried in the other forms, too.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from huiyin.common.characters import is_seen
from huiyin.common.errors import UserError
from huiyin.qqnt.cipher import PAGE_SIZE, WrongKey, detect, is_plain

LONGEST = 1_000  # characters; what is longer is another file
LONGEST_FILE = 4_000  # bytes
MOST_FORMS = 60
USUAL_LENGTHS = {16, 32, 64, 96}  # Windows and Linux, Android, the derived key, and that one with its salt
RAW_LENGTHS = (32, 48)  # bytes of the derived key
QUOTES = [("'", "'"), ('"', '"'), ("`", "`"), ("“", "”"), ("‘", "’")]
NAMED = re.compile(r"(?:pragma\s+)?\w*key\w*\s*[:=]\s*(.+?)\s*;?", re.IGNORECASE | re.DOTALL)
BLOB = re.compile(r"[xX]'([0-9A-Fa-f]+)'")
SEPARATORS = re.compile(r"0[xX]|\\x|[\s,:;\[\]{}-]")  # in a list of bytes


def opening_key(path: Path | None, source: Path) -> str | None:
    """Return the key in the form that opens `source`, and say so if it is another one than was given."""
    key, changed = working_key(source, read_key(path, source))
    if changed:
        print(f"decrypt: opened with the key {changed}; better write it so", flush=True)
    return key


def read_key(path: Path | None, source: Path) -> str | None:
    """Return the key from the environment, else from the file at `path`; None if `source` needs none."""
    content = os.environb.get(b"QQ_DB_KEY")
    where = "QQ_DB_KEY" if content else str(path or "--key")
    if not content:
        if path is None or not path.exists():
            with open(source, "rb") as file:
                if is_plain(file.read(PAGE_SIZE)):
                    return None
            raise UserError(f"{where}: no such file; write the key of the database there, or set QQ_DB_KEY")
        if not path.is_file():  # a pipe would be waited for
            raise UserError(f"{where}: not an ordinary file; write the key of the database there, or set QQ_DB_KEY")
        with open(path, "rb") as file:
            content = file.read(LONGEST_FILE + 1)
        if len(content) > LONGEST_FILE:
            raise UserError(f"{where}: too long for a key; write nothing but the key of the database there")
    try:
        key = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise UserError(f"{where}: the key is not UTF-8 text; save it as plain text with nothing but the key") from None
    if key.endswith("\n"):
        key = key[:-1].removesuffix("\r")
    if not key or "\0" in key:
        raise UserError(f"{where}: {'no key' if not key else 'a zero byte'} in it; write the key of the database there")
    return key


def working_key(path: Path, key: str | None) -> tuple[str | None, str]:
    """Return the form of `key` that opens the database at `path`, and in words what was done to it ("" for nothing);
    `UserError` if none does."""
    try:
        detect(path, key)
        return key, ""
    except WrongKey as error:
        assert key is not None  # without one it is another error
        for form, words in other_forms(key) if len(key) <= LONGEST else ():
            with suppress(WrongKey):
                detect(path, form)
                return form, words
        raise UserError(f"{error}{what_is_odd(key)}") from None


def other_forms(key: str) -> Iterator[tuple[str, str]]:
    """Yield (form, words) of what `key` may be meant to be, those with the fewest changes first."""
    words = {key: ""}
    waiting = [key]
    for form in waiting:  # grows
        for change, results in CHANGES.items():
            for result in results(form):
                if result and result not in words and len(words) < MOST_FORMS:
                    words[result] = ", ".join(filter(None, [words[form], change]))
                    waiting.append(result)
                    yield result, words[result]


def stripped(key: str) -> list[str]:
    """Return `key` without white space and what nobody sees at its ends."""
    shown = [index for index, character in enumerate(key) if is_seen(character) and not character.isspace()]
    return [key[shown[0] : shown[-1] + 1]] if shown else []


def lines(key: str) -> list[str]:
    return key.splitlines() if len(key.splitlines()) > 1 else []


def unquoted(key: str) -> Iterator[str]:
    """Yield `key` without its quotes; in SQL two of them stand for one."""
    for first, last in QUOTES:
        if len(key) > 1 and key[0] == first and key[-1] == last:
            yield key[1:-1]
            yield key[1:-1].replace(2 * first, first)


def from_hexadecimal(key: str) -> Iterator[str]:
    """Yield what `key` is if it is bytes in hexadecimal: the derived key, or text."""
    blob = BLOB.fullmatch(key)
    with suppress(ValueError):
        content = bytes.fromhex(blob[1] if blob else SEPARATORS.sub("", key))
        if len(content) in RAW_LENGTHS:
            yield content.hex()
        yield content.decode()


def named(key: str) -> list[str]:
    match = NAMED.fullmatch(key)
    return [match[1]] if match else []


CHANGES: dict[str, Callable[[str], Iterable[str]]] = {
    "without the blanks at its ends": stripped,
    "from one line alone": lines,
    "without its quotes": unquoted,
    "without what stands around it": named,
    "read as hexadecimal": from_hexadecimal,
    "in small letters": lambda key: [key.lower()],
    "in capitals": lambda key: [key.upper()],
}


def what_is_odd(key: str) -> str:
    """Return in words what is odd about `key`, which must not be shown itself; "" for nothing."""
    odd = {
        "a blank at an end": stripped(key) != [key],
        "several lines": len(key.splitlines()) > 1,
        "quotes around it": (key[:1], key[-1:]) in QUOTES,
        "characters that are no ASCII": not key.isascii(),
    }
    found = [words for words, is_so in odd.items() if is_so]
    if not found and len(key) in USUAL_LENGTHS:
        return ""
    return f". This one has {', '.join([f'{len(key):,} characters', *found])}; QQ's have 16, on Android 32"
