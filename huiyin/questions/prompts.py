"""Prompts: one Markdown file each, `$name` for the gaps, a line `---` between what is always said and the question."""

from dataclasses import dataclass
from pathlib import Path
from string import Template

from huiyin.common.errors import UserError

NAME_CHARACTERS = 30
TOKENS_PER_CHARACTER = 3  # a byte-level vocabulary writes a Chinese character in up to 3 tokens
FRAME_TOKENS = 32  # braces, keys and quotes around one item of an answer

# Chat is shown between <tags>; no message can close one, or look like a line of ours.
HARMLESS, TYPED = str.maketrans("<>", "＜＞"), str.maketrans("＜＞", "<>")


@dataclass
class Prompt:
    """`system`: what all questions of a stage share, so that the server keeps it; `user`: the rest."""

    system: str
    user: Template

    def fill(self, **gaps):
        return self.system, self.user.substitute(gaps)


def read_prompt(path, gaps):
    """Return the Prompt in the file at `path`; after its line `---`, it must name each of `gaps` and nothing else.

    A file without such a line is all question. `$$` stands for a dollar sign. A gap the file forgets or invents
    raises `UserError`.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig").strip()
    except FileNotFoundError:
        raise UserError(f"{path}: no such prompt file") from None
    system, line, user = text.partition("\n---\n")
    system, user = (system.strip(), user.strip()) if line else ("", text)
    for part, wanted in ((Template(system), set()), (Template(user), set(gaps))):
        if not part.is_valid():
            raise UserError(f"{path}: a `$` without a name; write `$$` for the sign itself")
        found = set(part.get_identifiers())
        for name in sorted(found - wanted):
            where = "above ---" if part.template == system and line else "here"
            raise UserError(f"{path}: ${name} fills nothing {where}; take it out")
        for name in sorted(wanted - found):
            raise UserError(f"{path}: ${name} is missing; put it where its text belongs")
    return Prompt(Template(system).substitute(), Template(user))


def one_line(text, limit):
    """Return `text` as one line of at most `limit` characters that cannot pass for anything but what somebody said."""
    text = " ".join(text.translate(HARMLESS).split())
    return text if len(text) <= limit else text[:limit] + "…"


def as_typed(text):
    """Return as one line what the model repeats of texts that `one_line` has shown it."""
    return " ".join(text.translate(TYPED).split())


def name_of(turn):
    return one_line(turn["nickname"], NAME_CHARACTERS)


def object_schema(properties):
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
