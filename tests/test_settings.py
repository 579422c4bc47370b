"""Settings are read strictly."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest

from huiyin.common.errors import UserError
from huiyin.common.settings import AtLeast0, AtLeast1, read_settings


@dataclass
class Settings:
    method: Literal["a", "b"] = "a"
    window: AtLeast0 = 10
    share: float = 0.5
    keep: bool = True
    groups: list[str] = field(default_factory=list)
    note: str | None = None
    rows: AtLeast1 | None = None

    PRESETS: ClassVar = {"default": {}, "seed": {"window": 3, "method": "b"}}


def read(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_settings(path, Settings)


def test_what_a_file_leaves_out_comes_from_its_preset(tmp_path):
    assert read(tmp_path, "") == Settings()
    assert read(tmp_path, "# only comments\n") == Settings()
    assert read(tmp_path, "preset: seed\n") == Settings(method="b", window=3)
    assert read(tmp_path, "window: 7\npreset: seed\n") == Settings(method="b", window=7)


def test_ids_stay_as_they_are_written(tmp_path):
    assert read(tmp_path, "groups: [0123, 1e5, 12345678901, no, 1_000]").groups == [
        "0123",
        "1e5",
        "12345678901",
        "no",
        "1_000",
    ]


def test_a_file_from_notepad_is_read(tmp_path):
    assert read(tmp_path, b"\xef\xbb\xbfwindow: 4\r\nnote: x\r\n") == Settings(window=4, note="x")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("windw: 3", "unknown setting 'windw'; known are: preset, method, window, share, keep, groups, note, rows"),
        ("preset: sead", "no preset 'sead'; there are: default, seed"),
        ("window: many", "window: must be a whole number, not 'many'"),
        ("window: 1.5", "window: must be a whole number, not '1.5'"),
        ("window: -1", "window: must be at least 0, not -1"),
        ("rows: 0", "rows: must be at least 1, not 0"),
        ("preset: [seed]", "preset: must be one value, not a list or mapping"),
        ("share: half", "share: must be a number, not 'half'"),
        ("keep: yes", "keep: must be true or false, not 'yes'"),
        ("method: c", "method: 'c' is not one of: a, b"),
        ("groups: 5", "groups: must be a list such as [a, b], not '5'"),
        ("window: [5]", "window: must be one value, not a list or mapping"),
        ("- a\n- b", "must be a list of `name: value` lines"),
    ],
)
def test_mistakes_are_named(tmp_path, text, problem):
    with pytest.raises(UserError) as error:
        read(tmp_path, text)
    assert str(error.value).removeprefix(f"{tmp_path}/x.yaml: ") == problem


def test_what_is_no_yaml_is_named_by_its_line(tmp_path):
    with pytest.raises(UserError, match=r"x\.yaml: line 2 is not YAML"):
        read(tmp_path, "window: 3\nkeep: a: b\n")
