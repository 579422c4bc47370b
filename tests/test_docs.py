"""The documents say what the code does."""

import dataclasses
import importlib
import re

import polars as pl
import pytest
import yaml

from helpers import ROOT, make
from huiyin.sources.history import ROW
from huiyin.training.settings import TrainSettings
from scripts import combine

CONFIG = ROOT / "config"
READMES = ["README.md", "README.zh-CN.md"]
SETTINGS = {name: f"scripts.{name}" for name in ("decrypt", "parse", "combine", "pair", "gen")}
SETTINGS |= {
    "chat": "huiyin.serving.chat",
    "voice": "scripts.tools.voice",
    "blind": "scripts.tools.blind",
    "llm": "huiyin.llm.client",
}
SETTINGS |= {"export": "huiyin.serving.finished", "preflight": "huiyin.training.plan"}


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def targets():
    """Return [(target, its comment), ...] in the order in which Make includes the files."""
    makefiles = "".join(text(name) for name in ("docker/docker.mk", "Makefile", "developers.mk"))
    return re.findall(r"^([a-z-]+):.*## ?(.*)", makefiles, re.MULTILINE)


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_is_in_its_file_with_its_default_and_a_comment(name):
    settings = importlib.import_module(SETTINGS[name]).Settings
    lines = text(f"config/{name}.yaml").splitlines()
    assert "preset: default" in lines
    defaults, shown = settings(), {}
    for index, line in enumerate(lines):
        match = re.fullmatch(r"# (\w+): ?(.*)", line)
        if match and hasattr(defaults, match[1]):
            shown[match[1]] = match[2]
            assert lines[index - 1].startswith("# "), f"{match[1]} has no comment"
    fields = [field.name for field in dataclasses.fields(settings)]
    assert [field for field in fields if field not in shown] == []
    for field in fields:
        assert (yaml.load(shown[field], yaml.BaseLoader) or "") == plain(getattr(defaults, field)), field


def plain(value):
    """The value as YAML's BaseLoader reads it; "" for nothing."""
    if value in (None, [], {}):
        return ""
    return value if isinstance(value, list) else str(value).lower() if isinstance(value, bool) else str(value)


def test_the_training_settings_are_explained():
    _, *paragraphs = text("config/train.yaml").split("\n\n")
    assert [paragraph for paragraph in paragraphs if not paragraph.startswith("# ")] == []


def test_the_table_of_targets_is_that_of_the_makefiles():
    written = re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", text("docs/targets.md"), re.MULTILINE)
    assert sorted(written) == sorted(targets())


@pytest.mark.parametrize("page", ["docs/again.md", "docs/again.zh-CN.md"])
def test_what_is_to_be_typed_next_month_are_targets_settings_and_variables(page):
    blocks = "".join(re.findall(r"^```\w+\n(.*?)^```", text(page), re.MULTILINE | re.DOTALL))
    typed = [word for line in re.findall(r"^make (.*)", blocks, re.MULTILINE) for word in re.findall("[a-z]+", line)]
    assert {"all", "voice", "report", "each"} <= set(typed) <= {name for name, _ in targets()}
    settings = dict(re.findall(r"^(\w+): (.*)", blocks, re.MULTILINE))
    known = {field.name for field in dataclasses.fields(TrainSettings)}
    assert settings["continue_from"] == "previous" and settings.keys() <= known


@pytest.mark.parametrize("name", READMES)
def test_a_readme_fits_on_three_screens_and_names_the_commands(name):
    readme = text(name)
    assert len(readme.splitlines()) <= 110
    assert "make demo" in readme and "make test" in readme and "docs/targets.md" in readme


@pytest.mark.parametrize("page", [*READMES, *sorted(f"docs/{path.name}" for path in (ROOT / "docs").iterdir())])
def test_links_between_pages_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text(page))
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_ci_calls_the_command_of_the_readme():
    assert "timed tests make test" in text(".ci/run").splitlines()
    assert "- run: .ci/run" in text(".github/workflows/ci.yaml")
    assert "\nmake test " in text("README.md")


def test_each_field_is_explained(demo):
    explained = set(re.findall(r"`([a-z_]+)`", text("data/README.md")))
    data = demo[0] / "data/demo"
    assert make(demo[0], "members", "CONFIG=demo", "RUN_IN=host").returncode == 0
    tables = ("parsed/messages", "combined/turns", "members/members")
    columns = [name for table in tables for name in pl.read_parquet_schema(data / f"{table}.parquet")]
    for name in ("10002/paired/pairs.jsonl", "10002/paired/unpaired.jsonl", "10002/generated/sources.jsonl"):
        columns += re.findall(r'"(\w+)": ', (data / name).read_text(encoding="utf-8").splitlines()[0])
    assert sorted(set(columns) - explained) == []


def test_each_reason_for_dropping_is_explained():
    explained = text("data/README.md")
    reasons = set()
    for script in [*ROOT.glob("scripts/*.py"), *ROOT.glob("huiyin/**/*.py")]:
        code = script.read_text(encoding="utf-8")
        reasons |= set(re.findall(r'dropped\["(\w+)"\]', code))
        reasons |= set(re.findall(r'(?:\.reason|otherwise)(?:: str)? ?= ?"(\w+)"', code))
    reasons |= set(ROW["dropped"].categories)  # those of parse
    assert {"older", "empty", "failed", "no_candidates", "undecided", "low_confidence", "none"} <= reasons
    reasons |= set(combine.Settings().special_texts)  # each of them is a reason, too
    assert sorted(reason for reason in reasons if f"`{reason}`" not in explained) == []


def test_no_file_of_the_project_names_a_setting_by_a_word_yaml_would_turn_into_a_boolean():
    for path in CONFIG.rglob("*.yaml"):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert not re.match(r"(# )?\w+: (on|off|yes|no)$", line), f"{path}: {line}"
