"""The Modelfile, from which `ollama create` makes the finished model."""

import json
from typing import Any

from huiyin.serving.templates.chat_format import ChatFormat


def modelfile(
    chat_format: ChatFormat, system: str, fixed: bool, parameters: dict[str, Any], weights: str = "merged"
) -> str:
    """Return the Modelfile of the model in the folder or GGUF file `weights` beside it. fixed: no other system prompt
    than `system` counts.

    System prompts that Ollama's parser (parser/parser.go) does not read back from SYSTEM are written escaped into
    TEMPLATE: those with three quotation marks, or with characters Go does not print, such as the joiners of emojis.
    """
    plain = '"""' not in system and all(character.isprintable() or character == "\n" for character in system)
    template = chat_format.go_template(None if plain and not fixed else system, fixed)
    lines = [
        f"PARAMETER {name} {json.dumps(item, ensure_ascii=False)}"
        for name, value in parameters.items()
        for item in (value if isinstance(value, list) else [value])
    ]
    system_lines = [f'SYSTEM """{system}"""'] if plain else []
    return "\n\n".join([f"FROM ./{weights}", f'TEMPLATE """{template}"""', *system_lines, "\n".join(lines)]) + "\n"
