"""The blind test: which of two replies is real? The items of its page, and the codes that friends send back.

A code is `PAGE-PLAYER-ANSWERS-CHECK` in Crockford's base 32: the page's id (5 characters), a random id that the browser
keeps (4), a bit for each item, 1 if the real reply was found (5 bits a character, the first item first), and a checksum
(2).
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from huiyin.common.errors import UserError
from huiyin.report.page import render, say, shown

Rows = list[dict[str, Any]]

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
READ_AS = str.maketrans("OIL", "011")  # what people mistake
AT_LEAST = 10  # items
SURE = 0.05  # so rarely may somebody who guesses reach the score from which on one can tell


def needed(items: int) -> int:
    """Return the smallest score that somebody who guesses reaches in at most SURE of all tests; 20 of 30."""
    tail, score = 0.0, items + 1
    while score > 0 and (tail := tail + math.comb(items, score - 1) / 2**items) <= SURE:
        score -= 1
    return score


# ---- the page


def choose(
    replies: Rows, training: Iterable[str], is_copied: Callable[[str], bool], hide: Callable[[str], str], number: int
) -> Rows:
    """Return the items [{prompt, real, model}, ...], those first whose two replies are of like length.

    Left out are prompts that the language model wrote, replies that stand in the training, copies, and equal ones.
    replies: lines of replies.jsonl. is_copied: says it of a reply of the model. hide: takes personal data out of a
    text."""
    known, items = set(map(plain, training)), []
    for line in replies:
        prompt, real, model = (hide(line[name]).strip() for name in ("prompt", "reply", "trained"))
        fresh = real and model and not {plain(real), plain(model)} & known and plain(real) != plain(model)
        if fresh and not is_copied(model) and line["decided_by"] != "written":
            items.append({"prompt": prompt, "real": real, "model": model})
    items.sort(key=lambda item: abs(math.log(len(item["real"]) / len(item["model"]))))
    return items[:number]


def plain(text: str) -> str:
    return "".join(filter(str.isalnum, text)).casefold()


def page(items: Rows, name: str, separator: str) -> str:
    """Return the page; `UserError` for too few items. The order of the two replies is random, but always the same."""
    if len(items) < AT_LEAST:
        raise UserError(
            f"only {len(items)} held-out replies can be used (no copies, prompts that somebody wrote), {AT_LEAST} are "
            "needed; raise eval_share in gen.yaml, then make voice again"
        )
    digest = hashlib.sha256(json.dumps(items, ensure_ascii=False).encode("utf-8", "replace")).digest()
    page_id = base32(int.from_bytes(digest[:4]) >> 7, 5)
    order = random.Random(page_id)
    order.shuffle(items)
    second = [order.random() < 0.5 for _ in items]  # the real reply is the second one
    texts = [
        {
            "prompt": parts(item["prompt"], separator),
            "replies": [parts(item[name], separator) for name in names(of_one)],
        }
        for item, of_one in zip(items, second, strict=True)
    ]
    key = "".join(str(int(bit) ^ mask) for bit, mask in zip(second, masks(page_id), strict=False))
    return render(
        "blind.html", items=texts, page_id=page_id, key=key, name=name, needed=needed(len(items)), alphabet=ALPHABET
    )


def names(real_is_second: bool) -> tuple[str, str]:
    return ("model", "real") if real_is_second else ("real", "model")


def parts(text: str, separator: str) -> list[str]:
    """Return the messages of a text, as the page shows them."""
    return [shown(message, 1000) for message in text.split(separator) if message.strip()] or ["…"]


def masks(page_id: str) -> Iterable[int]:
    """Yield bits that hide which reply is real from a look at the source; the page computes them, too. The generator
    is Park and Miller's, x = 16807 x mod (2^31 - 1)."""
    state = sum(ALPHABET.index(character) << 5 * index for index, character in enumerate(page_id)) + 1
    while True:
        state = state * 16807 % 2147483647
        yield state >> 7 & 1


# ---- codes


def base32(number: int, characters: int) -> str:
    return "".join(ALPHABET[number >> 5 * index & 31] for index in reversed(range(characters)))


def check(code: str) -> str:
    """Return the checksum of PAGE-PLAYER-ANSWERS."""
    total = 7
    for character in code.replace("-", ""):
        total = (total * 31 + ALPHABET.index(character)) % 1021
    return base32(total, 2)


@dataclass
class Played:
    """What the codes say: how many count, how often the real reply was found, of how many items."""

    codes: int = 0
    right: int = 0
    items: int = 0
    told: bool = False
    sentence: Markup | str = ""
    remarks: list[Markup] = field(default_factory=list)


def of_page(html: str) -> tuple[str, int]:
    """Return (id, number of items) of a blind page; ("", 0) if it is none."""
    found = re.search(r'<meta name="huiyin-blind" content="(\w{5}) (\d+)">', html[:2000])
    return (found[1], int(found[2])) if found else ("", 0)


def read_codes(texts: Iterable[str], html: str) -> Played:
    """Return what the codes in some texts say. One code a person counts, the first; html: the blind page."""
    page_id, items = of_page(html)
    counted: dict[str, str] = {}
    others = damaged = again = 0
    length = math.ceil(items / 5)
    for code in codes_in(texts):
        page, player, answers, checksum = code.split("-")
        if check(f"{page}-{player}-{answers}") != checksum:
            damaged += 1
        elif page != page_id or len(answers) != length:
            others += 1
        elif player in counted:
            again += 1
        else:
            counted[player] = answers
    right = sum(bits(answers)[:items].count("1") for answers in counted.values())
    played = Played(len(counted), right, items * len(counted))
    played.told = bool(counted) and right >= needed(played.items)
    played.sentence = sentence(played) if counted else ""
    kinds = [
        (damaged, "{n} codes are damaged", "{n}份代码已损坏"),
        (others, "{n} codes are of another page", "{n} 份代码属于另一个页面"),
        (again, "{n} codes of somebody who had played already", "{n} 份代码来自已经玩过的人"),
    ]
    played.remarks = [say(english, chinese, n=count) for count, english, chinese in kinds if count]
    return played


def codes_in(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        for found in re.finditer(r"(?<![\w-])\w{5}-\w{4}-\w{2,}-\w{2}(?![\w-])", text, re.ASCII):
            code = found[0].upper().translate(READ_AS)
            if all(character in ALPHABET + "-" for character in code):
                yield code


def bits(answers: str) -> str:
    return "".join(f"{ALPHABET.index(character):05b}" for character in answers)


def sentence(played: Played) -> Markup:
    numbers: Mapping[str, Any] = {"right": played.right, "items": played.items, "needed": needed(played.items)}
    if played.told:
        return say(
            "Friends can tell: they found the real reply in {right} of {items}; {needed} are enough to say so.",
            "朋友分得出来：{items} 题中找对了 {right} 题，达到 {needed} 题就可以这么说。",
            **numbers,
        )
    return say(
        "Friends cannot tell: they found the real reply in {right} of {items}; to say that they can takes {needed}.",
        "朋友分不出来：{items} 题中找对了 {right} 题；达到 {needed} 题才能说分得出来。",
        **numbers,
    )


def texts_in(folder: Path) -> list[str]:
    """Return the texts of the files in the folder of codes, in the order of their names."""
    files = sorted(path for path in folder.glob("*") if path.is_file()) if folder.is_dir() else []
    return [path.read_text(encoding="utf-8", errors="replace") for path in files]
