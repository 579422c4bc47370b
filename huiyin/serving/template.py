"""The chat template used in training, translated for the programs that serve the model: Ollama and transformers.

LLaMA-Factory can write a Modelfile; the TEMPLATE in it shows the prompt that it trained with.
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from huiyin.common.errors import UserError
from huiyin.serving.process import save_tokenizer

TEMPLATE = re.compile(
    r'^TEMPLATE """(?P<prefix>.*?){{ if \.System }}(?P<system>.*?){{ end }}{{ range \.Messages }}'
    r'{{ if eq \.Role "user" }}(?P<user>.*?){{ else if eq \.Role "assistant" }}(?P<assistant>.*?){{ end }}{{ end }}'
    r'"""$',
    re.MULTILINE | re.DOTALL,
)
STOP = re.compile(r'^PARAMETER stop "(.*)"$', re.MULTILINE)


class Prompt(NamedTuple):
    """The parts of a prompt; `system` has the placeholder {{ .System }}, `user` and `assistant` {{ .Content }}."""

    prefix: str
    system: str
    user: str
    assistant: str
    stop: list[str]

    def go_template(self, variable: str = ".System") -> str:
        """Return the TEMPLATE of a Modelfile (Go's text/template); `variable` holds the system prompt."""
        system = self.system.replace("{{ .System }}", f"{{{{ {variable} }}}}")
        return (
            f"{self.prefix}{{{{ if {variable} }}}}{system}{{{{ end }}}}"
            f'{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{self.user}'
            f'{{{{ else if eq .Role "assistant" }}}}{self.assistant}{{{{ end }}}}{{{{ end }}}}'
        )

    def go_template_with(self, system: str, fixed: bool) -> str:
        """Return a TEMPLATE that contains the system prompt `system`: the default, or if `fixed` the only one."""
        escaped = "".join(c if c.isascii() and c.isalnum() else f"\\U{ord(c):08x}" for c in system)
        override = "" if fixed else "{{ if .System }}{{ $system = .System }}{{ end }}"
        return f'{{{{ $system := "{escaped}" }}}}{override}{self.go_template("$system")}'

    def jinja_template(self, system: str, fixed: bool) -> str:
        """Return the chat template for transformers, vLLM and llama-server; arguments as in `go_template_with`."""
        override = "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% endif %}"

        def output(part: str, placeholder: str, variable: str) -> str:
            before, after = part.split(placeholder)
            return "{{ " + " + ".join([quoted(before), variable, quoted(after)]) + " }}"

        return (
            f"{{% set system = {quoted(system)} %}}{'' if fixed else override}{{{{ {quoted(self.prefix)} }}}}"
            f"{{% if system %}}{output(self.system, '{{ .System }}', 'system')}{{% endif %}}"
            "{% for message in messages %}"
            f"{{% if message['role'] == 'user' %}}{output(self.user, '{{ .Content }}', 'message.content')}"
            f"{{% elif message['role'] == 'assistant' %}}"
            f"{output(self.assistant, '{{ .Content }}', 'message.content')}{{% endif %}}{{% endfor %}}"
        )


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # a JSON string is also a Jinja string


def read_prompt(modelfile: Path, tokenizer_config: Path) -> Prompt:
    """Return the `Prompt` in LLaMA-Factory's Modelfile, without the first token if `add_bos_token` is set in
    tokenizer_config.json: Ollama lets llama-server add it then, and it would be there twice."""
    match = TEMPLATE.search(text := modelfile.read_text(encoding="utf-8"))
    if not match:
        raise UserError(f"{modelfile}: no TEMPLATE of the known form in it; take another template in train.yaml")
    settings = json.loads(tokenizer_config.read_text(encoding="utf-8"))
    first = settings.get("bos_token") or ""
    first = first if isinstance(first, str) else first["content"]
    prompt = Prompt(**match.groupdict(), stop=sorted(STOP.findall(text)))
    return prompt._replace(prefix=prompt.prefix.removeprefix(first)) if settings.get("add_bos_token") else prompt


def modelfile(prompt: Prompt, system: str, fixed: bool, parameters: dict[str, Any]) -> str:
    """Return the Modelfile of the model in ./merged.

    System prompts that Ollama's parser (parser/parser.go) does not read back from SYSTEM are written escaped into
    TEMPLATE: those with three quotation marks, or with characters Go does not print, such as the joiners of emojis.
    """
    plain = '"""' not in system and all(character.isprintable() or character == "\n" for character in system)
    template = prompt.go_template() if plain and not fixed else prompt.go_template_with(system, fixed)
    lines = [
        f"PARAMETER {name} {json.dumps(item, ensure_ascii=False)}"
        for name, value in parameters.items()
        for item in (value if isinstance(value, list) else [value])
    ]
    system_lines = [f'SYSTEM """{system}"""'] if plain else []
    return "\n\n".join(["FROM ./merged", f'TEMPLATE """{template}"""', *system_lines, "\n".join(lines)]) + "\n"


def save_prompt(
    base: Path, template: str, system: str, fixed: bool, folder: Path, work: Path, variables: Mapping[str, str]
) -> Prompt:
    """Save tokenizer and chat template of the training into `folder`; return its `Prompt`. base, template, system: the
    base model, LLaMA-Factory's template and the system prompt of the training; fixed: no other one counts; work: a
    folder for files; variables: the environment of the process that does it."""
    modelfile = save_tokenizer(base, template, folder, work, variables)
    prompt = read_prompt(modelfile, folder / "tokenizer_config.json")
    set_chat_template(folder, prompt, system, fixed)
    ends = base / "generation_config.json"
    if ends.exists():
        shutil.copyfile(ends, folder / ends.name)
    return prompt


def set_chat_template(merged: Path, prompt: Prompt, system: str, fixed: bool) -> None:
    """Give the model in `merged` the chat template of the training, for transformers, vLLM and llama-server."""
    (merged / "chat_template.jinja").write_text(prompt.jinja_template(system, fixed), encoding="utf-8")
    path = merged / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings.pop("chat_template", None)
    path.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
