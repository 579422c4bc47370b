"""Settings: one YAML file a stage, read into one dataclass that names, types, bounds and defaults every key."""

import dataclasses
import itertools
import re
import reprlib
import types
import typing
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import yaml
from msgspec import Meta

from huiyin.common.digests import digest
from huiyin.common.errors import UserError

AtLeast0 = Annotated[int, Meta(ge=0, le=1_000_000)]
AtLeast1 = Annotated[int, Meta(ge=1, le=1_000_000)]
UpTo1000 = Annotated[int, Meta(ge=0, le=1000)]
From1To1000 = Annotated[int, Meta(ge=1, le=1000)]
Share = Annotated[float, Meta(ge=0, le=1)]
Temperature = Annotated[float, Meta(ge=0, le=5)]
Text = Annotated[str, Meta(min_length=1)]
# The address of a server, for a `pattern`; what of it is still wrong the session says when it is opened
ADDRESS = r"https?://(\S+@)?([A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*|\[[0-9A-Fa-f:.]+\])(:[1-9]\d{0,4})?(/\S*)?"
CREDENTIALS = re.compile(r"(?<=://).*@", re.DOTALL)  # greedy: what people type as a password may hold any character
HALF = re.compile("[\ud800-\udfff]")  # of the two that stand for a character in UTF-16; UTF-8 cannot hold it

# Type in words; what has bounds is Annotated with them
WORDS: dict[type, str] = {
    **{bool: "true or false", int: "a whole number", float: "a number", str: "text"},
    **{date: "a day such as 2022-08-14", types.NoneType: "empty"},
}

Settings = TypeVar("Settings")


def read_settings(path: Path, cls: type[Settings]) -> Settings:
    """Return a `cls` filled from the YAML file at `path`. What the file leaves out comes from its `preset`,
    `cls.PRESETS[name]` on top of the dataclass defaults. Unknown and doubled keys and values that the type does not
    allow are `UserError`. Scalars are read as text before they get their type: an id such as 0012 stays as it is."""
    return fill(cls, read_mapping(path), path)


def fill(cls: type[Settings], given: dict[str, Any], path: Path) -> Settings:
    """Return a `cls` with the values `given` as text in the file at `path`."""
    presets = getattr(cls, "PRESETS", {"default": {}})
    preset = convert(given.pop("preset", "default"), Literal[tuple(presets)], f"{path}: preset")
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in given:
        if name not in fields:
            known = ", ".join(fields)
            raise UserError(f"{path}: unknown setting {reprlib.repr(name)}; known are: preset, {known}")
    values = {name: convert(value, hints[name], f"{path}: {name}") for name, value in given.items()}
    return cls(**{**presets[preset], **values})


def read_mapping(path: Path, loader: Any = yaml.BaseLoader) -> dict[str, Any]:
    """Return the YAML mapping in the file at `path`; an empty file is an empty mapping."""
    if path.is_fifo():  # one would be waited for
        raise UserError(f"{path}: no settings file can be read there: it is a pipe")
    try:
        text = path.read_text(encoding="utf-8-sig")
        for token in yaml.scan(text):
            if isinstance(token, (yaml.AliasToken, yaml.TagToken)):  # a few lines of aliases can mean gigabytes
                raise yaml.MarkedYAMLError(problem="* and ! need quotes around the text", problem_mark=token.start_mark)
            if isinstance(token, yaml.ScalarToken) and HALF.search(token.value):
                problem = "half a character; write the character itself, not \\u and its two halves"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=token.start_mark)
        reader = loader(text)
        node = reader.get_single_node()
        content = reader.construct_document(node) if node else None
    except OSError as error:
        raise UserError(f"{path}: no settings file can be read there: {error.strerror}") from None
    except RecursionError:
        raise UserError(f"{path}: lists in lists in lists; write `name: value` lines") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}:{where} is not YAML: {getattr(error, 'problem', None) or error}") from None
    if content in (None, ""):
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a list of `name: value` lines")
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.value in lines:
            raise UserError(f"{path}: {key.value}: stands in line {lines[key.value]} and in line {line}; keep one")
        lines[key.value] = line
    return content


def meaning(path: Path) -> str:
    """Return a digest of what the settings file at `path` says, whatever its comments and the order of its lines."""
    return digest(read_mapping(path))


def convert(value: Any, kind: Any, where: str) -> Any:
    """Return `value` (text, or a list of text) as the type `kind`; `UserError` if it cannot be one."""
    # Each type of a union by itself: msgspec 0.22 corrupts memory where a `pattern` and a list share a union
    union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    kinds = typing.get_args(kind) if union else (kind,)
    for form, one in itertools.product((value, meant(value)), kinds):
        with suppress(msgspec.ValidationError):
            return msgspec.convert(form, one, strict=False)
    shown = reprlib.repr(without_credentials(value)).strip("'") or "empty"
    raise UserError(f"{where}: must be {' or '.join(map(allowed, kinds))}, not {shown}")


def without_credentials(value: Any) -> Any:
    """Return `value` (text, or lists and mappings of it) with no user and password in its addresses, to be shown."""
    if isinstance(value, dict):
        return {name: without_credentials(item) for name, item in value.items()}
    if isinstance(value, list):
        return [without_credentials(item) for item in value]
    return CREDENTIALS.sub("", value) if isinstance(value, str) else value


def meant(value: Any) -> Any:
    """Return what text stands for where text is not wanted: nothing, or a number as people write it (.5, 1_000)."""
    if value in ("", "~"):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def allowed(kind: Any) -> str:
    """Say in words what the type `kind` allows."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " or ".join(arguments)
    if origin is list:
        return f"a list such as [a, b], each item {allowed(arguments[0])}"
    if origin is dict:
        return "lines such as `a: [b, c]`"
    if origin is Annotated:
        base, meta = arguments
        if meta.le is None:
            return meta.description or allowed(base)
        least = f"above {meta.gt} and at most" if meta.ge is None else f"from {meta.ge} to"
        return f"{allowed(base)} {least} {meta.le}"
    return WORDS[kind]
