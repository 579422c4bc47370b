"""Settings are read strictly."""

import importlib
import os
import re
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import date
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
import yaml

from helpers import ROOT, run_script
from huiyin.common.errors import UserError
from huiyin.common.settings import AtLeast0, AtLeast1, Share, read_settings
from huiyin.llm import client as llm
from huiyin.training.settings import read_train_settings


@dataclass
class Settings:
    method: Literal["a", "b"] = "a"
    window: AtLeast0 = 10
    share: Share = 0.5
    keep: bool = True
    groups: list[str] = field(default_factory=list)
    day: date | None = None
    rows: AtLeast1 | None = None

    PRESETS: ClassVar = {"default": {}, "seed": {"window": 3, "method": "b"}}


read_these, read_llm = partial(read_settings, cls=Settings), partial(read_settings, cls=llm.Settings)


def read(tmp_path, text, reader=read_these):
    path = tmp_path / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return reader(path)


def refusal(tmp_path, text, reader=read_these):
    """Return the one line with which `text` is refused, without the folder."""
    with pytest.raises(UserError) as error:
        read(tmp_path, text, reader)
    line = str(error.value).removeprefix(f"{tmp_path}/")
    assert "\n" not in line and len(line) < 400, line
    return line


IDS = ["0123", "1e5", "12345678901", "no", "1_000", "null"]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("# only comments\n", {}),
        ("preset: seed\n", {"method": "b", "window": 3}),
        ("window: 7\npreset: seed\n", {"method": "b", "window": 7}),
        (f"groups: [{', '.join(IDS)}]", {"groups": IDS}),  # as they are written
        ("window: 1_000\nshare: .5\nrows: '012'", {"window": 1000, "share": 0.5, "rows": 12}),
        ("window: +7\nshare: 1e-3\nrows:\nday: null", {"window": 7, "share": 0.001}),
        ("day: 2022-08-14", {"day": date(2022, 8, 14)}),
        (b"\xef\xbb\xbfwindow: 4\r\nmethod: b\r\n", {"window": 4, "method": "b"}),  # from Notepad
    ],
)
def test_a_file_is_read_as_people_write_it_and_the_rest_comes_from_its_preset(tmp_path, text, values):
    assert read(tmp_path, text) == Settings(**values)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("windw: 3", "unknown setting 'windw'; known are: preset, method, window, share, keep, groups, day, rows"),
        ("preset: sead", "preset: must be default or seed, not sead"),
        ("preset: [seed]", "preset: must be default or seed, not ['seed']"),
        ("window: many", "window: must be a whole number from 0 to 1000000, not many"),
        ("window: 1.5", "window: must be a whole number from 0 to 1000000, not 1.5"),
        ("window:", "window: must be a whole number from 0 to 1000000, not empty"),
        ("window: {a: 1}", "window: must be a whole number from 0 to 1000000, not {'a': '1'}"),
        ("rows: 0", "rows: must be a whole number from 1 to 1000000 or empty, not 0"),
        (f"share: {'9' * 5000}", "share: must be a number from 0 to 1, not 999999999999...9999999999999"),
        ("share: 70", "share: must be a number from 0 to 1, not 70"),
        ("keep: yes", "keep: must be true or false, not yes"),
        ("method: c", "method: must be a or b, not c"),
        ("groups: 5", "groups: must be a list such as [a, b], each item text, not 5"),
        ("day: 2022-02-30", "day: must be a day such as 2022-08-14 or empty, not 2022-02-30"),
        ("window: 1\nkeep: true\nwindow: 2", "window: stands in line 1 and in line 3; keep one"),
        ("- a\n- b", "must be a list of `name: value` lines"),
        (f"groups: {'[' * 3000}", "lists in lists in lists; write `name: value` lines"),
        ("window: 3\nkeep: a: b\n", "line 2 is not YAML: mapping values are not allowed here"),
        ("groups: &a [x]\nmethod: *a", "line 2 is not YAML: * and ! need quotes around the text"),
        ("method: !!python/name:os.system", "line 1 is not YAML: * and ! need quotes around the text"),
        (
            'window: 3\nmethod: "\\ud83d\\ude00"',
            "line 2 is not YAML: half a character; write the character itself, not \\u and its two halves",
        ),
        ("a: 1\n---\nb: 2", "line 2 is not YAML: but found another document"),
    ],
)
def test_mistakes_are_named(tmp_path, text, problem):
    assert refusal(tmp_path, text).removeprefix("x.yaml:").strip() == problem


def test_what_is_no_file_is_one_line(tmp_path):
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "gone.yaml", "No such file or directory")):
        with pytest.raises(UserError, match=f"^{re.escape(str(path))}: no settings file can be read there: {reason}$"):
            read_settings(path, Settings)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"/pipe: no settings file can be read there: it is a pipe$"):
        read_settings(tmp_path / "pipe", Settings)


# ---- Every setting of every file


def classes():
    """Yield every class of settings in the code, found by its name."""
    for path in sorted([*ROOT.glob("huiyin/**/*.py"), *ROOT.glob("scripts/**/*.py")]):
        for name in re.findall(r"^class (\w*Settings)\b", path.read_text(encoding="utf-8"), re.MULTILINE):
            module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
            if is_dataclass(getattr(module, name)):  # not a Protocol
                yield getattr(module, name)


CLASSES = list(classes())
ALL = [pytest.param(cls, field.name, id=f"{cls.__module__}.{field.name}") for cls in CLASSES for field in fields(cls)]


def refused(kind):
    """Return what the type `kind` must refuse, as YAML. A number without bounds fails the test."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (UnionType, Union):
        everywhere = set.intersection(*(refused(one) for one in arguments if one is not NoneType))
        return everywhere - {""} if NoneType in arguments else everywhere
    if kind in (int, float):
        pytest.fail("a number needs bounds: Annotated[..., Meta(ge=..., le=...)]")
    if origin is Annotated and get_origin(arguments[0]) is list:
        return refused(arguments[0])
    if origin is dict:
        return {"word", "[a]", *(f"{{a: {value}}}" for value in refused(arguments[1]))}
    if origin is list:
        return {"word", "[[a]]", *(f"[{value}]" for value in refused(arguments[0]) if value)}
    if str in (kind, *arguments):
        return set() if kind is str else {"''", "[[a]]"} | ({"word"} if arguments[1].pattern else set())
    values = {"", "word", ".nan", "nan", "-inf", "9" * 5000}
    if origin is Annotated:
        least = arguments[1].gt if arguments[1].ge is None else arguments[1].ge - 1
        values |= {str(least), str(arguments[1].le + 1)}
    return values


@pytest.mark.parametrize(("cls", "name"), ALL)
def test_each_setting_refuses_what_is_wrong_in_one_line(tmp_path, cls, name):
    def line(text):
        return refusal(tmp_path, text, partial(read_settings, cls=cls))

    for value in {"{a: b}"} | refused(get_type_hints(cls, include_extras=True)[name]):
        assert line(f"{name}: {value}").startswith(f"x.yaml: {name}: must be ")
    assert line(f"{name}: 1\n\n{name}: 1") == f"x.yaml: {name}: stands in line 1 and in line 3; keep one"
    assert line(f"{name}_: 1").startswith(f"x.yaml: unknown setting '{name}_'; known are: preset, ")


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls.__name__ == "Settings"], ids=lambda cls: cls.__module__)
def test_defaults_and_presets_are_values_that_a_file_may_have(tmp_path, cls):
    for changes in getattr(cls, "PRESETS", {"default": {}}).values():
        values = msgspec.to_builtins(cls(**changes))
        assert read(tmp_path, yaml.safe_dump(values), partial(read_settings, cls=cls)) == cls(**changes)


def test_only_addresses_are_urls(tmp_path):
    urls = ["http://127.0.0.1:11434", "https://user:word@gpu-1.local/v1", "http://[::1]:80", "auto"]
    assert read(tmp_path, f"url: {urls}", read_llm).url == urls
    words = "auto or an address such as http://127.0.0.1:11434"
    for url in ("'http://[::1'", "ftp://a", "http://", "a:1", "http://a:0", f"http://{'a' * 300}", "http://a b", "[]"):
        line = refusal(tmp_path, f"url: {url}", read_llm)
        assert line.startswith(f"x.yaml: url: must be {words} or a list such as [a, b], each item {words}, not "), url


# ---- train.yaml


TRAIN = "model_name_or_path: 2024\ntemplate: qwen\n"


def test_numbers_of_train_yaml_are_read_as_people_write_them(tmp_path):
    text = f"{TRAIN}learning_rate: 1e-3\ncutoff_len: '512'\nlora_rank: 1.6e1\nadam_epsilon: 1e-8\nx: 2024-01-01\n"
    values = read(tmp_path, text, read_train_settings)
    assert values["model_name_or_path"] == "2024"
    assert (values["learning_rate"], values["cutoff_len"], values["lora_rank"]) == (1e-3, 512, 16)
    assert (values["adam_epsilon"], values["x"]) == (1e-8, "2024-01-01")  # passed on, they are LLaMA-Factory's


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("cutoff_len:", "cutoff_len: must be a whole number from 1 to 1000000, not empty"),
        ("lora_rank: auto", "lora_rank: must be a whole number from 1 to 1000, not auto"),
        ("learning_rate: .nan", "learning_rate: must be a number above 0 and at most 1 or empty, not .nan"),
        ("finetuning_type: full", "finetuning_type: must be lora, not full"),
        ("x: 1\nx: 2", "x: stands in line 3 and in line 4; keep one"),
        ("<<: {x: *y}", "line 3 is not YAML: * and ! need quotes around the text"),
        ("0.5: 42", "line 3 is not YAML: a name that is no text"),
        ("deepspeed: {a: {1: b, c: d}}", "line 3 is not YAML: a name that is no text"),
    ],
)
def test_mistakes_in_train_yaml_are_named(tmp_path, text, line):
    assert refusal(tmp_path, TRAIN + text, read_train_settings).removeprefix("x.yaml:").strip() == line


@pytest.mark.parametrize(
    ("command", "text", "line"),
    [
        ("combine x --out x", "merge: [rule]", "merge: must be rule or none, not ['rule']"),
        (
            "train x --preflight config/preflight.yaml --models x --gpu none --cache x --llm x --export x --out x",
            f"{TRAIN}lora_rank: .inf",
            "lora_rank: must be a whole number from 1 to 1000, not .inf",
        ),
    ],
)
def test_a_stage_ends_with_that_line(tmp_path, command, text, line):
    (tmp_path / "x.yaml").write_text(text)
    done = run_script(*command.split(), "--config", tmp_path / "x.yaml")
    assert (done.returncode, done.stderr) == (1, f"{command.split()[0]}.py: {tmp_path}/x.yaml: {line}\n")
