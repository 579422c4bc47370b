"""LLaMA-Factory's chat templates, read from its source, and the number of tokens that they make of a text.

To import them takes ten seconds, because torch comes with them. But a template is registered by a call whose arguments
are literals (llamafactory/data/template.py), which are read here without being run.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huiyin.common.control import harmless
from huiyin.common.errors import UserError

CONTENT = "{{content}}"  # what a text stands for in a slot

Slots = list[Any]  # texts, and what is always a single token: {"bos_token"}, {"eos_token"}, {"token": ...}


@dataclass(frozen=True)
class Template:
    """What is put around the texts of a row: a prefix and the system text once, then prompts and replies."""

    prefix: Slots
    system: Slots
    user: Slots
    assistant: Slots
    stop_words: list[str]  # added to the tokenizer, if it does not have them
    thought: str  # an empty one, put before each reply
    system_in_prompt: bool  # the system text is part of the first prompt
    end: int  # tokens after the last reply


def read_template(name: str) -> Template:
    """Return LLaMA-Factory's template `name`; `UserError` if it has none of that name."""
    if name not in registered():
        raise UserError(f"template {name}: LLaMA-Factory has no template of that name; fix train.yaml")
    return template_of(registered()[name])


@cache
def registered() -> dict[str, dict[str, ast.expr]]:
    """Return {name: the arguments with which LLaMA-Factory registers this template}."""
    package = find_spec("llamafactory")
    if not package or not package.submodule_search_locations:
        raise UserError("LLaMA-Factory is not installed here; `make .venv/train` installs it")
    source = Path(package.submodule_search_locations[0]) / "data/template.py"
    calls = [
        {keyword.arg: keyword.value for keyword in node.value.keywords if keyword.arg}
        for node in ast.parse(source.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ]
    return {ast.literal_eval(call["name"]): call for call in calls if "name" in call}


def template_of(given: Mapping[str, ast.expr]) -> Template:
    """Return the template that is registered with the arguments `given`; defaults as in `register_template`."""

    def slots(name: str, default: Slots) -> Slots:
        formatter = given.get(name)
        assert formatter is None or isinstance(formatter, ast.Call)
        return ast.literal_eval(formatter.keywords[0].value) if formatter else default

    def value(name: str, default: Any) -> Any:
        return ast.literal_eval(given[name]) if name in given else default

    kind = ast.unparse(given["template_class"]) if "template_class" in given else "Template"
    efficient_eos = value("efficient_eos", False)
    return Template(
        prefix=slots("format_prefix", []),
        system=slots("format_system", [CONTENT]),
        user=slots("format_user", [CONTENT]),
        assistant=slots("format_assistant", [CONTENT] if efficient_eos else [CONTENT, {"eos_token"}]),
        stop_words=value("stop_words", []),
        thought="".join(value("thought_words", ("<think>\n", "\n</think>\n\n"))) if "Reasoning" in kind else "",
        system_in_prompt=kind == "Llama2Template",
        end=int(efficient_eos),
    )


class Encoding:
    """The tokens of texts in LLaMA-Factory's template `name`, with the tokenizer of the base model in `base`.

    As in LLaMA-Factory (data/template.py, _encode) each slot is tokenized apart. Its count is exact, but for one token
    too many where the tokenizer has no first token (bos) or the template closes a thought without opening it.
    """

    def __init__(self, name: str, base: Path) -> None:
        from tokenizers import Tokenizer

        self.template = template = read_template(name)
        try:
            tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
        except Exception as error:  # it has no class of its own
            raise UserError(f"{base}/tokenizer.json: not a tokenizer ({error}); get the base model again") from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.add_special_tokens(template.stop_words)
        added = tokenizer.get_added_tokens_decoder()
        self.control = {id_: token.content for id_, token in added.items() if is_control(token.content, token.special)}
        self.ids = cache(lambda text: tokenizer.encode(text, add_special_tokens=False).ids)
        self.thought = len(self.ids(template.thought))

    def control_token(self, text: str) -> str | None:
        """Return the first control token of the model that `text` turns into, if any."""
        return next((self.control[token] for token in self.ids(text) if token in self.control), None)

    def count(self, slots: Slots, text: str = "") -> int:
        """Return the number of tokens of `slots` with `text` in them."""
        return sum(
            len(self.ids(slot.replace(CONTENT, text, 1))) if isinstance(slot, str) else 1  # bos, eos, one token
            for slot in slots
        )

    def opening(self, system: str, prompt: str) -> int:
        """Return the number of tokens before the first reply of a row."""
        template = self.template
        if system and template.system_in_prompt:
            prompt, system = template.system[0].replace(CONTENT, system, 1) + prompt, ""
        before = self.count(template.prefix) + (self.count(template.system, system) if system else 0)
        return before + self.prompt(prompt)

    def prompt(self, text: str) -> int:
        return self.count(self.template.user, text)

    def reply(self, text: str) -> int:
        return self.thought + self.count(self.template.assistant, text)


def is_control(token: str, special: bool) -> bool:
    """Is an added token of a tokenizer one that steers the model, although it may not be flagged as special? Others are
    ordinary: tokenizers add runs of blanks (Gemma, Phi) and tags of HTML (Gemma) as tokens, too."""
    return special or harmless(token) != token
