"""The prompt of the training, in the words of those who ask the finished model: Ollama and transformers.

LLaMA-Factory writes a Modelfile when it merges; its TEMPLATE is the only place where it tells its prompt.
"""

import json
import re
from typing import NamedTuple

from common.errors import Mistake

TEMPLATE = re.compile(
    r'^TEMPLATE """(?P<prefix>.*?){{ if \.System }}(?P<system>.*?){{ end }}{{ range \.Messages }}'
    r'{{ if eq \.Role "user" }}(?P<user>.*?){{ else if eq \.Role "assistant" }}(?P<assistant>.*?){{ end }}{{ end }}'
    r'"""$', re.MULTILINE | re.DOTALL)
STOP = re.compile(r'^PARAMETER stop "(.*)"$', re.MULTILINE)


class Prompt(NamedTuple):
    """The pieces of a prompt; `system` has the gap {{ .System }}, `user` and `assistant` have {{ .Content }}."""

    prefix: str
    system: str
    user: str
    assistant: str
    stop: list[str]

    def go(self, system="{{ .System }}", given=".System"):
        """Return the TEMPLATE of a Modelfile (Go's text/template); `given`: where it finds the system text."""
        return (f"{self.prefix}{{{{ if {given} }}}}{self.system.replace('{{ .System }}', system)}{{{{ end }}}}"
                f'{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{self.user}'
                f'{{{{ else if eq .Role "assistant" }}}}{self.assistant}{{{{ end }}}}{{{{ end }}}}')

    def jinja(self, system):
        """Return the chat template of transformers, vLLM and llama-server; `system` is said where none is given."""
        def said(piece, gap, value):
            before, after = piece.split(gap)
            return "{{ " + " + ".join([quoted(before), value, quoted(after)]) + " }}"

        return (
            "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
            f"{{% else %}}{{% set system = {quoted(system)} %}}{{% endif %}}"
            f"{{{{ {quoted(self.prefix)} }}}}"
            f"{{% if system %}}{said(self.system, '{{ .System }}', 'system')}{{% endif %}}"
            "{% for message in messages %}"
            f"{{% if message['role'] == 'user' %}}{said(self.user, '{{ .Content }}', 'message.content')}"
            f"{{% elif message['role'] == 'assistant' %}}"
            f"{said(self.assistant, '{{ .Content }}', 'message.content')}{{% endif %}}{{% endfor %}}")


def quoted(text):
    return json.dumps(text, ensure_ascii=False)  # a string of JSON is one of Jinja, too


def read_prompt(modelfile, tokenizer_config):
    """Return the `Prompt` in LLaMA-Factory's Modelfile, without the first token where the tokenizer adds that itself.

    Ollama has llama-server do so if `add_bos_token` in tokenizer_config.json is true; in the text it would come twice.
    """
    text = modelfile.read_text(encoding="utf-8")
    match = TEMPLATE.search(text)
    if not match:
        raise Mistake(f"{modelfile}: LLaMA-Factory has written no TEMPLATE there that can be read; "
                      "take another template in train.yaml")
    settings = json.loads(tokenizer_config.read_text(encoding="utf-8"))
    first = settings.get("bos_token") or ""
    first = first if isinstance(first, str) else first["content"]
    prompt = Prompt(**match.groupdict(), stop=sorted(STOP.findall(text)))
    return prompt._replace(prefix=prompt.prefix.removeprefix(first)) if settings.get("add_bos_token") else prompt


def modelfile(prompt, system, parameters):
    """Return the Modelfile of the model in ./merged.

    What Ollama's parser (parser/parser.go) cannot take back out of SYSTEM, that is a line that ends in three quotation
    marks, or characters Go does not print, such as the joiners of emojis, goes escaped into TEMPLATE.
    """
    if '"""' not in system and all(character.isprintable() or character == "\n" for character in system):
        words = [f'TEMPLATE """{prompt.go()}"""', f'SYSTEM """{system}"""']
    else:
        escaped = "".join(character if character.isascii() and character.isalnum() else f"\\U{ord(character):08x}"
                          for character in system)
        ours = f'{{{{ $system := .System }}}}{{{{ if not $system }}}}{{{{ $system = "{escaped}" }}}}{{{{ end }}}}'
        words = [f'TEMPLATE """{ours}{prompt.go("{{ $system }}", "$system")}"""']
    lines = [f"PARAMETER {name} {json.dumps(item, ensure_ascii=False)}" for name, value in parameters.items()
             for item in (value if isinstance(value, list) else [value])]
    return "\n\n".join(["FROM ./merged", *words, "\n".join(lines)]) + "\n"
