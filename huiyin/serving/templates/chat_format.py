"""What a chat format is, and the templates with which the programs that serve a model write it.

The training, the counting of tokens, Ollama, transformers and llama-server all take it from here, so that a model is
prompted with the tokens that it was trained on (tests/test_prompt.py).
"""

import json
from dataclasses import dataclass
from typing import Literal, NamedTuple

Thinking = Literal["never", "can", "always"]


class Part(NamedTuple):
    """What stands before and after a text."""

    before: str
    after: str

    def around(self, text: str) -> str:
        return f"{self.before}{text}{self.after}"

    def in_go(self, variable: str) -> str:
        return self.around(f"{{{{ {variable} }}}}")

    def in_jinja(self, variable: str) -> str:
        return f"{{{{ {quoted(self.before)} + {variable} + {quoted(self.after)} }}}}"


@dataclass(frozen=True)
class ChatFormat:
    """The frame of a conversation: `first`, the system text if there is one, then prompts and replies in turn."""

    name: str  # in train.yaml
    models: str  # that have it, for people
    architecture: str  # of these models, in config.json
    system: Part
    user: Part  # up to where the reply begins
    reply: Part
    control: list[str]  # the tokens that frame a conversation
    stop: list[str]  # the tokens that end a reply; the first is the one that is trained
    first: str = ""  # a token at the very beginning
    thought: str = ""  # an empty one, which the prompt has before each reply, so that the model writes none
    default_system: str = ""  # of these models' own templates; ours have that of the training, or none
    system_in_prompt: bool = False  # the system text is the beginning of the first prompt
    thinking: tuple[Thinking, ...] = ("never",)  # of the models that it is for

    def go_template(self, system: str | None = None, fixed: bool = False) -> str:
        """Return the TEMPLATE of a Modelfile (Go's text/template); `first` is not in it, because llama-server adds it.

        system: a system prompt that the template contains: the default, or if `fixed` the only one.
        """
        start = f"{{{{ $system := {'.System' if system is None else escaped(system)} }}}}"
        if system is not None and not fixed:
            start += "{{ if .System }}{{ $system = .System }}{{ end }}"
        shown = f'{{{{ if $system }}}}{self.system.in_go("$system")}{{{{ $system = "" }}}}{{{{ end }}}}'
        before, prompt = self.places(shown, self.user.before, "{{ .Content }}", self.user.after + self.thought)
        return (
            f'{start}{before}{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{prompt}'
            f'{{{{ else if eq .Role "assistant" }}}}{self.reply.in_go(".Content")}{{{{ end }}}}{{{{ end }}}}'
        )

    def jinja_template(self, system: str, fixed: bool) -> str:
        """Return the chat template for transformers, vLLM and llama-server; arguments as in `go_template`. llama-server
        takes `first` off where it adds it itself."""
        start = f"{{% set state = namespace(system={quoted(system)}) %}}"
        if not fixed:
            start += (
                "{% if messages[0]['role'] == 'system' %}{% set state.system = messages[0]['content'] %}{% endif %}"
            )
        shown = (
            f"{{% if state.system %}}{self.system.in_jinja('state.system')}{{% set state.system = '' %}}{{% endif %}}"
        )
        user = [f"{{{{ {text} }}}}" for text in map(quoted, [self.user.before, self.user.after + self.thought])]
        before, prompt = self.places(shown, user[0], "{{ message.content }}", user[1])
        return (
            f"{start}{{{{ {quoted(self.first)} }}}}{before}"
            f"{{% for message in messages %}}{{% if message['role'] == 'user' %}}{prompt}"
            f"{{% elif message['role'] == 'assistant' %}}"
            f"{self.reply.in_jinja('message.content')}{{% endif %}}{{% endfor %}}"
        )

    def places(self, system: str, before: str, content: str, after: str) -> tuple[str, str]:
        """Return (what stands before the messages, a prompt), with the system text where it belongs."""
        inside = self.system_in_prompt
        return "" if inside else system, before + (system if inside else "") + content + after


def quoted(text: str) -> str:
    """Return `text` as a string of Jinja's: a JSON string is one."""
    return json.dumps(text, ensure_ascii=False)


def escaped(text: str) -> str:
    """Return `text` as a string of Go's that survives Ollama's reading of a Modelfile."""
    return '"{}"'.format("".join(c if c.isascii() and c.isalnum() else f"\\U{ord(c):08x}" for c in text))
