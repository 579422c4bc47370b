"""Settings: one YAML file a stage, read into one dataclass that names, types and defaults every key."""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from huiyin.common.errors import UserError

# Numbers with a least value: `window: AtLeast1`
AtLeast0 = typing.Annotated[int, 0]
AtLeast1 = typing.Annotated[int, 1]


Settings = TypeVar("Settings")


def read_settings(path: Path, cls: type[Settings]) -> Settings:
    """Return a `cls` filled from the YAML file at `path`.

    A key the file leaves out comes from its `preset`: `cls.PRESETS[name]` on top of the dataclass defaults.
    Unknown keys and values of the wrong type raise `UserError`. Every scalar is read as text first and then
    turned into the declared type, so an id such as 0012 stays as it was written.
    """
    given = read_mapping(path)
    presets = getattr(cls, "PRESETS", {"default": {}})
    preset = convert(given.pop("preset", "default"), str, f"{path}: preset")
    if preset not in presets:
        raise UserError(f"{path}: no preset {preset!r}; there are: {', '.join(presets)}")
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in given:
        if name not in fields:
            raise UserError(f"{path}: unknown setting {name!r}; known are: preset, {', '.join(fields)}")
    values = {name: convert(value, hints[name], f"{path}: {name}") for name, value in given.items()}
    return cls(**{**presets[preset], **values})


def read_mapping(path: Path, loader: Any = yaml.BaseLoader) -> dict[str, Any]:
    """Return the YAML mapping in the file at `path`; an empty file is an empty mapping."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        content = yaml.load(text, loader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such settings file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}:{line} is not YAML: {getattr(error, 'problem', None) or error}") from None
    if content is None or content == "":
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a list of `name: value` lines")
    return content


def convert(value: Any, kind: Any, where: str) -> Any:
    """Turn `value` (text, or a list of text) into the type `kind`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):  # X | None, or X | list[X]
        if types.NoneType in arguments and value in ("", "null", "~"):
            return None
        return convert(value, arguments[1 if isinstance(value, list) and len(arguments) > 1 else 0], where)
    if origin is typing.Annotated:
        number = convert(value, arguments[0], where)
        if not number >= arguments[1]:
            raise UserError(f"{where}: must be at least {arguments[1]}, not {value}")
        return number
    if origin is list:
        if not isinstance(value, list):
            raise UserError(f"{where}: must be a list such as [a, b], not {value!r}")
        return [convert(item, arguments[0], where) for item in value]
    if isinstance(value, (list, dict)):
        raise UserError(f"{where}: must be one value, not a list or mapping")
    if origin is typing.Literal:
        if value not in arguments:
            raise UserError(f"{where}: {value!r} is not one of: {', '.join(arguments)}")
        return value
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise UserError(f"{where}: must be true or false, not {value!r}")
        return value.lower() == "true"
    try:
        return kind(value)
    except ValueError:
        name = {int: "a whole number", float: "a number"}[kind]
        raise UserError(f"{where}: must be {name}, not {value!r}") from None
