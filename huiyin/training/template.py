"""A chat format in LLaMA-Factory's words, and the number of tokens that it makes of a text."""

from functools import cache
from pathlib import Path

from huiyin.common.control import harmless
from huiyin.common.errors import UserError
from huiyin.serving.templates.chat_format import ChatFormat, Part
from huiyin.serving.templates.known import find_format
from huiyin.training.settings import Values

# LLaMA-Factory's own gemma3 asks for the picture processor of the larger models; its gemma has the same frame.
OTHER_NAMES = {"gemma3": "gemma"}


def template_settings(chat_format: ChatFormat) -> Values:
    """Return LLaMA-Factory's settings for this format. Its `enable_thinking`, if it is not false, teaches the empty
    thought as a part of each reply; without `preserve_thinking`, a row with `mask_history` has it only before the last.
    """
    settings: Values = {"template": OTHER_NAMES.get(chat_format.name, chat_format.name)}
    return {**settings, "enable_thinking": False, "preserve_thinking": True} if chat_format.thought else settings


def trained_format(used: Values) -> ChatFormat:
    """Return the format of a training with LLaMA-Factory's settings `used`; `UserError` if it was trained in another
    way than now."""
    template: str = used["template"]
    names = {other: name for name, other in OTHER_NAMES.items()}
    chat_format = find_format(names.get(template, template))
    if any(used.get(name) != value for name, value in template_settings(chat_format).items()):
        raise UserError(
            f"an earlier version trained with template {chat_format.name}, and taught the empty thought as a part of "
            "each reply; train again (make clean-train)"
        )
    return chat_format


class Encoding:
    """The tokens of texts in a chat format, with the tokenizer of the base model in `base`.

    As in LLaMA-Factory (data/template.py, _encode) the text of the system, each prompt with its frame, each thought and
    each reply with its end is tokenized apart.
    """

    def __init__(self, chat_format: ChatFormat, base: Path) -> None:
        from tokenizers import Tokenizer

        self.format = chat_format
        try:
            tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
        except Exception as error:  # it has no class of its own
            raise UserError(f"{base}/tokenizer.json: not a tokenizer ({error}); get the base model again") from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        added = tokenizer.get_added_tokens_decoder()
        self.control = {id_: token.content for id_, token in added.items() if is_control(token.content, token.special)}
        self.ids = cache(lambda text: tokenizer.encode(text, add_special_tokens=False).ids)

    def control_token(self, text: str) -> str | None:
        """Return the first control token of the model that `text` turns into, if any."""
        return next((self.control[token] for token in self.ids(text) if token in self.control), None)

    def count(self, part: Part, text: str) -> int:
        return len(self.ids(part.around(text)))

    def opening(self, system: str, prompt: str) -> int:
        """Return the number of tokens before the first reply of a row."""
        first = len(self.ids(self.format.first))
        if system and self.format.system_in_prompt:
            return first + self.prompt(self.format.system.around(system) + prompt)
        return first + (self.count(self.format.system, system) if system else 0) + self.prompt(prompt)

    def prompt(self, text: str) -> int:
        return self.count(self.format.user, text) + len(self.ids(self.format.thought))

    def reply(self, text: str) -> int:
        return self.count(self.format.reply, text)


def is_control(token: str, special: bool) -> bool:
    """Is an added token of a tokenizer one that steers the model, although it may not be flagged as special? Others are
    ordinary: tokenizers add runs of blanks (Gemma, Phi) and tags of HTML (Gemma) as tokens, too."""
    return special or harmless(token) != token
