"""Prompts: one Markdown file each, `$name` for the gaps."""

from pathlib import Path
from string import Template

from common.errors import Mistake


def read_prompt(path, gaps):
    """Return the prompt file at `path` as a template; it must name each of `gaps` and nothing else.

    `$$` stands for a dollar sign. A gap the file forgets or invents raises `Mistake`.
    """
    try:
        prompt = Template(Path(path).read_text(encoding="utf-8-sig").strip())
    except FileNotFoundError:
        raise Mistake(f"{path}: no such prompt file") from None
    if not prompt.is_valid():
        raise Mistake(f"{path}: a `$` without a name; write `$$` for the sign itself")
    found = set(prompt.get_identifiers())
    for name in sorted(found ^ set(gaps)):
        problem = "fills nothing here; take it out" if name in found else "is missing; put it where its text belongs"
        raise Mistake(f"{path}: ${name} {problem}")
    return prompt


def one_line(text, limit):
    """Return `text` as one line of at most `limit` characters, so that no message can look like a line of ours."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit] + "…"
