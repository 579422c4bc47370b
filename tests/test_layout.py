"""How the code is laid out: which folder may import which, what is annotated, what scripts/ holds."""

import ast
from pathlib import Path

import pytest

from helpers import ROOT

# docs/development.md draws these arrows: a folder of huiyin/ -> the folders it may import
MAY_IMPORT = {
    "common": set(),
    "qqnt": {"common"},
    "sources": {"common", "qqnt"},
    "linking": {"common"},
    "llm": {"common"},
    "questions": {"common", "linking", "llm"},
    "serving": {"common", "llm"},
    "training": {"common", "llm", "serving"},
    "voice": {"common", "linking", "questions", "serving", "training"},
    "forecast": {"common", "llm", "serving", "training"},
    "report": {"common"},
}
CHILD_PROCESSES = {
    "huiyin/serving/ask.py",
    "huiyin/training/probe.py",
}  # programs of their own: only these may import torch as they load
HEAVY = {"torch", "transformers", "peft"}


def files(root=ROOT):
    return [*sorted((root / "huiyin").rglob("*.py")), *sorted((root / "scripts").rglob("*.py"))]


def imports(path):
    """Yield (module, name or None, is it at module level?) for each import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        top = node in tree.body
        if isinstance(node, ast.Import):
            yield from ((alias.name, None, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from ((node.module, alias.name, top) for alias in node.names)


def forbidden(root):
    """Yield a line for each import that goes against the arrows."""
    for path in files(root):
        name = path.relative_to(root).as_posix()
        room = name.split("/")[1]
        for module, _, top in imports(path):
            first, _, rest = module.partition(".")
            if first == "scripts" and not (name.startswith("scripts/demo/") and rest.startswith("demo")):
                yield f"{name} imports the script {module}"
            if name.startswith("huiyin/") and first == "huiyin" and rest.split(".")[0] not in {room, *MAY_IMPORT[room]}:
                yield f"{name} imports {module}"
            if top and first in HEAVY and name not in CHILD_PROCESSES:
                yield f"{name} imports {module} as it loads"


def test_a_script_is_ready_for_ctrl_c_before_it_loads_packages():
    programs = [path for path in files() if "run(main)" in path.read_text(encoding="utf-8")]
    assert len(programs) == 25
    for path in programs:
        loaded = [module for module, _, top in imports(path) if top and module != "__future__"]
        assert loaded[0] == "huiyin.common.starting", path


def test_no_import_goes_against_the_arrows():
    assert list(forbidden(ROOT)) == []


@pytest.mark.parametrize(
    ("file", "line", "found"),
    [
        ("huiyin/llm/new.py", "from huiyin.linking.rule import link", "huiyin/llm/new.py imports huiyin.linking.rule"),
        ("huiyin/qqnt/new.py", "import huiyin.sources.frames", "huiyin/qqnt/new.py imports huiyin.sources.frames"),
        ("huiyin/common/new.py", "from scripts import pair", "huiyin/common/new.py imports the script scripts"),
        ("scripts/new.py", "from scripts.pair import main", "scripts/new.py imports the script scripts.pair"),
        ("scripts/tools/new.py", "import torch", "scripts/tools/new.py imports torch as it loads"),
    ],
)
def test_a_wrong_import_is_found(tmp_path, file, line, found):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(f"{line}\n")
    assert list(forbidden(tmp_path)) == [found]


def test_scripts_holds_the_seven_stages():
    stages = ["combine", "decrypt", "export", "gen", "pair", "parse", "train"]
    assert [path.stem for path in sorted((ROOT / "scripts").glob("*.py"))] == stages


def bare(function):
    """Is an argument of the function or its result without a type?"""
    given = function.args
    arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    typed = [argument.annotation for argument in arguments if argument and argument.arg not in ("self", "cls")]
    return None in typed or (function.returns is None and function.name != "__init__")


def test_what_other_modules_call_is_annotated():
    """Functions that another module imports, and the public methods of classes that it imports."""
    used = {(module, name) for path in files() for module, name, _ in imports(path) if name}
    missing = []
    for path in files():
        module = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        if path.stem.endswith("_pb2"):
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if (module, getattr(node, "name", None)) not in used:
                continue
            parts = node.body if isinstance(node, ast.ClassDef) else [node]
            functions = [part for part in parts if isinstance(part, ast.FunctionDef)]
            missing += [
                f"{module}: {node.name}.{part.name}"
                for part in functions
                if bare(part) and (not part.name.startswith("_") or part.name == "__init__")
            ]
    assert missing == []


def test_no_file_touches_the_path_of_modules():
    name = "sys" + ".path"
    assert [path for path in [*files(), *Path(ROOT).glob("[bt]e*/*.py")] if name in path.read_text("utf-8")] == []
