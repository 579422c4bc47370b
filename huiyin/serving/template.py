"""The prompt of the training, in the words of those who ask the finished model: Ollama and transformers.

LLaMA-Factory writes a Modelfile when it merges; its TEMPLATE is the only place where it tells its prompt.
"""

import json
import re
from typing import NamedTuple

from huiyin.common.errors import UserError

TEMPLATE = re.compile(
    r'^TEMPLATE """(?P<prefix>.*?){{ if \.System }}(?P<system>.*?){{ end }}{{ range \.Messages }}'
    r'{{ if eq \.Role "user" }}(?P<user>.*?){{ else if eq \.Role "assistant" }}(?P<assistant>.*?){{ end }}{{ end }}'
    r'"""$',
    re.MULTILINE | re.DOTALL,
)
STOP = re.compile(r'^PARAMETER stop "(.*)"$', re.MULTILINE)


class Prompt(NamedTuple):
    """The pieces of a prompt; `system` has the gap {{ .System }}, `user` and `assistant` have {{ .Content }}."""

    prefix: str
    system: str
    user: str
    assistant: str
    stop: list[str]

    def go(self, value=".System"):
        """Return the TEMPLATE of a Modelfile (Go's text/template); `value`: where it finds the system text."""
        system = self.system.replace("{{ .System }}", f"{{{{ {value} }}}}")
        return (
            f"{self.prefix}{{{{ if {value} }}}}{system}{{{{ end }}}}"
            f'{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{self.user}'
            f'{{{{ else if eq .Role "assistant" }}}}{self.assistant}{{{{ end }}}}{{{{ end }}}}'
        )

    def go_with(self, system, fixed):
        """Return a TEMPLATE that has the system text `system` inside: where none is given, or `fixed`, always."""
        text = (
            '"'
            + "".join(
                character if character.isascii() and character.isalnum() else f"\\U{ord(character):08x}"
                for character in system
            )
            + '"'
        )
        ours = "" if fixed else "{{ if .System }}{{ $system = .System }}{{ end }}"
        return f"{{{{ $system := {text} }}}}{ours}{self.go('$system')}"

    def jinja(self, system, fixed):
        """Return the chat template of transformers, vLLM and llama-server, with `system` inside as in `go_with`."""
        ours = f"{{% set system = {quoted(system)} %}}"
        given = "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% endif %}"

        def said(piece, gap, value):
            before, after = piece.split(gap)
            return "{{ " + " + ".join([quoted(before), value, quoted(after)]) + " }}"

        return (
            f"{ours}{'' if fixed else given}{{{{ {quoted(self.prefix)} }}}}"
            f"{{% if system %}}{said(self.system, '{{ .System }}', 'system')}{{% endif %}}"
            "{% for message in messages %}"
            f"{{% if message['role'] == 'user' %}}{said(self.user, '{{ .Content }}', 'message.content')}"
            f"{{% elif message['role'] == 'assistant' %}}"
            f"{said(self.assistant, '{{ .Content }}', 'message.content')}{{% endif %}}{{% endfor %}}"
        )


def quoted(text):
    return json.dumps(text, ensure_ascii=False)  # a string of JSON is one of Jinja, too


def read_prompt(modelfile, tokenizer_config):
    """Return the `Prompt` in LLaMA-Factory's Modelfile, without the first token where the tokenizer adds that itself.

    Ollama has llama-server do so if `add_bos_token` in tokenizer_config.json is true; in the text it would come twice.
    """
    text = modelfile.read_text(encoding="utf-8")
    match = TEMPLATE.search(text)
    if not match:
        raise UserError(
            f"{modelfile}: LLaMA-Factory has written no TEMPLATE there that can be read; "
            "take another template in train.yaml"
        )
    settings = json.loads(tokenizer_config.read_text(encoding="utf-8"))
    first = settings.get("bos_token") or ""
    first = first if isinstance(first, str) else first["content"]
    prompt = Prompt(**match.groupdict(), stop=sorted(STOP.findall(text)))
    return prompt._replace(prefix=prompt.prefix.removeprefix(first)) if settings.get("add_bos_token") else prompt


def modelfile(prompt, system, fixed, parameters):
    """Return the Modelfile of the model in ./merged.

    What Ollama's parser (parser/parser.go) cannot take back out of SYSTEM goes escaped into TEMPLATE: three quotation
    marks at the end of a line, or characters Go does not print, such as the joiners of emojis.
    """
    plain = '"""' not in system and all(character.isprintable() or character == "\n" for character in system)
    words = [
        f'TEMPLATE """{prompt.go() if plain and not fixed else prompt.go_with(system, fixed)}"""',
        *([f'SYSTEM """{system}"""'] if plain else []),
    ]
    lines = [
        f"PARAMETER {name} {json.dumps(item, ensure_ascii=False)}"
        for name, value in parameters.items()
        for item in (value if isinstance(value, list) else [value])
    ]
    return "\n\n".join(["FROM ./merged", *words, "\n".join(lines)]) + "\n"
