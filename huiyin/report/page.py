"""Pages of two languages in one file, without any outside source: the frame of report and blind test."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from huiyin.common.characters import is_seen

SHOWN = 400  # characters of a text on the page


def say(english: str, chinese: str, **values: Any) -> Markup:
    """Return a text in both languages, of which the page shows one; values fill its fields, escaped."""
    return Markup('<span lang="en">{}</span><span lang="zh">{}</span>').format(
        Markup(english).format(**values), Markup(chinese).format(**values)
    )


def shown(text: object, limit: int = SHOWN) -> str:
    """Return a text of the history as the page shows it: cut, without characters that nobody sees."""
    text = str(text)
    kept = "".join(character for character in text[: limit + 1] if is_seen(character) or keeps(character))
    return kept[:limit] + "…" if len(text) > limit else kept


def keeps(character: str) -> bool:
    """Joiners and marks make one emoji of several, and accents."""
    return character in "\u200d\ufe0f" or unicodedata.category(character) == "Mn"


def render(template: str, /, **values: Any) -> str:
    """Return the page of a template in `templates/`; everything that comes from `values` is escaped."""
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"say": say}
    environment.filters |= {"shown": shown}
    return environment.get_template(template).render(**values)


def write_page(path: Path, text: str) -> None:
    """Write a page that only its owner can read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(f".{path.name}.part")
    part.touch(mode=0o600)
    part.write_text(text, encoding="utf-8", errors="replace")
    part.replace(path)
