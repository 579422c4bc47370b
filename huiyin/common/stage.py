"""A stage: its arguments, its ledger, its files (whole or not at all), its receipt."""

import argparse
import fcntl
import json
import os
import platform
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec

from huiyin.common.chinese import translated
from huiyin.common.digests import Digests, File, digest, sha256
from huiyin.common.errors import UserError
from huiyin.common.settings import meaning, without_credentials

Settings = TypeVar("Settings")

STAGES = ("decrypt", "parse", "combine", "pair", "gen", "train", "export")
WOULD_RUN = 3  # exit status


class Ledger:
    """What became of every record: read = written + merged + sum(dropped)."""

    def __init__(self) -> None:
        self.read = 0
        self.written = 0
        self.merged: int | None = None  # a number where several records become one
        self.dropped: Counter[str] = Counter()

    def as_dict(self) -> dict[str, Any]:
        merged = {} if self.merged is None else {"merged": self.merged}
        return {"read": self.read, "written": self.written, **merged, "dropped": dict(sorted(self.dropped.items()))}

    def check(self) -> None:
        accounted = self.written + (self.merged or 0) + self.dropped.total()
        if self.read != accounted:
            raise AssertionError(f"the ledger does not balance: {self.as_dict()}")

    def __str__(self) -> str:
        merged = "" if self.merged is None else f"merged {self.merged:,}, "
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(self.dropped.items()) if count)
        dropped = f"dropped {self.dropped.total():,}" + (f" ({reasons})" if reasons else "")
        return f"read {self.read:,}, written {self.written:,}, {merged}{dropped}"


class Unchanged(Exception):
    """The results of the stage are there, made of the same."""


class Stage:
    """One run of a stage into the folder `out`.

        with Stage("parse", out, results=1, packages=["polars"]) as stage:
            stage.use(path, settings)
            path = stage.input(path)
            stage.stop_if_done()
            write(stage.output("messages.parquet"), read(path))
            stage.ledger.read += 1
            stage.receipt["kinds"] = {...}

    Outputs are written as `.<name>.part` and renamed together when the block ends without an exception; then
    comes `receipt.json`. After an exception the earlier result is as it was.

    The identity of a result is what it was made of: the digests of the inputs, the values of the settings, what
    `depends_on` was told, and the number `results`, which the script raises when of the same it would make something
    else. What has an identity already is not made again: `stop_if_done` leaves the block.
    """

    def __init__(self, name: str, out: Path, results: int = 1, packages: Sequence[str] = ()):
        self.name, self.out, self.results, self.packages = name, Path(out), results, packages
        self.ledger = Ledger()
        self.receipt: dict[str, Any] = {}
        self.inputs: dict[str, str] = {}
        self.settings: dict[str, Any] = {}
        self.outputs: list[str] = []
        self.others: list[Any] = []
        self.newest = 0  # date (ns) of the newest prerequisite, but not before the stage began
        self.earlier = read_receipt(self.out)
        self.digests = Digests(known_files(self.earlier))

    def __enter__(self) -> Self:
        self.started, self.newest = time.monotonic(), time.time_ns()
        self.after(Path(sys.argv[0]))
        self.out.mkdir(parents=True, exist_ok=True)
        self.out.chmod(0o700)
        self.folder = os.open(self.out, os.O_RDONLY)
        try:  # two runs in one folder would delete each other's parts; the lock ends with the process
            fcntl.flock(self.folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self.out}: another run is at work here; wait for it, or stop it first") from None
        self._remove_parts()
        return self

    def after(self, path: Path) -> None:
        """The receipt will not be older than the file at `path`, which is a prerequisite for Make, is now."""
        with suppress(OSError):
            date = path.stat().st_mtime_ns
            if date > time.time_ns() and path.name != "receipt.json":
                print(
                    f"{self.name}: {path} is of the future, so that this is looked at each time; touch it", flush=True
                )
            self.newest = max(self.newest, date)

    def input(self, path: Path, digest: str | None = None) -> Path:
        """Note the file at `path` as an input, with its sha256 (given, if the caller knows it already); return it."""
        path = Path(path)
        for folder in (path.parent, path.parent.parent):  # that of the stage that made it
            self.after(folder / "receipt.json")
        if digest:
            self.digests.keep(path, digest)
        self.inputs[str(path)] = digest or self.digests.of(path)
        return path

    def use(self, path: Path, settings: Settings) -> Settings:
        """Note the settings file at `path` and what was read from it; return the settings. Those that its class names
        in WITHOUT_EFFECT do not count for the identity."""
        self.after(path)
        values = msgspec.to_builtins(settings)
        self.settings[str(path)] = {"sha256": sha256(path), "meaning": meaning(path), "values": values}
        left_out = getattr(settings, "WITHOUT_EFFECT", ())
        self.depends_on({name: value for name, value in values.items() if name not in left_out})
        return settings

    def depends_on(self, *others: Any) -> None:
        """Note what else the result is made of, beside inputs and settings: anything that JSON can hold."""
        self.others += others

    def stop_if_done(self, *later: Path) -> None:
        """Leave the block of the stage if its results are there, whole, and were made of the same; say so. later: the
        inputs that are noted only as they are read."""
        named = self.earlier.get("identity", {})
        if self.earlier and named.get("results") != self.results:
            print(f"{self.name}: what is in {self.out} is of another version of Huiyin; it is made anew", flush=True)
        elif self.earlier and self._may_be(later) and named["sha256"] == self._identity(later) and self._whole():
            for path in later:
                self.input(path)
            raise Unchanged
        self.begins()

    def begins(self) -> None:
        """End the program here if it was only asked whether there is anything to do, by `python -X check`."""
        if "check" in sys._xoptions:
            raise SystemExit(WOULD_RUN)

    def _may_be(self, later: Sequence[Path]) -> bool:
        """Return False where a look at the sizes of `later` is enough to see that they are others; they may be huge."""
        sizes = {file.size for file in self.digests.known.values()}
        return all(path.is_file() and path.stat().st_size in sizes for path in later)

    def _identity(self, later: Sequence[Path] = ()) -> str:
        inputs = [*self.inputs.values(), *map(self.digests.of, later)]
        return digest(self.name, self.results, inputs, without_credentials(self.others))

    def _whole(self) -> bool:
        """Are the outputs as the earlier receipt names them?"""
        outputs = self.earlier["outputs"].items()
        return all(
            (self.out / name).exists() and self.digests.of_tree(self.out / name) == digests for name, digests in outputs
        )

    def _keep(self):
        """Give the receipt of results that are still right a date that tells Make so. It is written anew only if what
        they were made of has another name now."""
        receipt = self.out / "receipt.json"
        if (
            self.inputs.keys() != self.earlier["inputs"].keys()
            or self.settings.keys() != self.earlier["settings"].keys()
        ):
            names = {"inputs": self.inputs, "settings": self.settings, "files": msgspec.to_builtins(self.digests.files)}
            self._receipt_part(self.earlier | names).replace(receipt)
        os.utime(receipt, ns=(self.newest, self.newest))
        say(f"{self.name}: nothing has changed")

    def output(self, name: str) -> Path:
        """Return the path to write the output file or folder `name` to."""
        self._check_folder()
        self.outputs.append(name)
        return self.out / f".{name}.part"

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                self.ledger.check()
                self._commit()
                say(f"{self.name}: {self.ledger}, {self.receipt['seconds']:.1f} s")
            elif kind is Unchanged:
                self._keep()
            elif not isinstance(error, (UserError, KeyboardInterrupt, SystemExit)):
                self._check_folder()
                if not isinstance(error, OSError):  # those have names of their own
                    self._check_inputs()
        finally:
            if self._has_folder():
                self._remove_parts()
                with suppress(OSError):  # not if there is anything in it
                    self.out.rmdir()
            os.close(self.folder)
        return kind is Unchanged

    def _has_folder(self):
        """Is `out` still the folder that is locked? Another run may have made a new one after `make clean-...`."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self.folder), self.out.stat())
        return False

    def _check_folder(self):
        if not self._has_folder():
            raise UserError(f"{self.out}: was deleted while {self.name} was at work; start again")

    def _check_inputs(self):
        """`UserError` for an input that is not what the receipt beside it names: the cause of an error that nobody
        foresaw. It is no error by itself, since people may change our files."""
        for path in map(Path, self.inputs):
            named = read_receipt(path.parent).get("outputs", {}).get(path.name)
            if isinstance(named, str) and path.is_file() and sha256(path) != named:
                raise UserError(f"{path}: cannot be read, it was changed or damaged since then; {anew(path, '')}")

    def _commit(self):
        from importlib.metadata import version  # takes as long as all else that --help loads

        self._check_folder()
        parts = {name: self.out / f".{name}.part" for name in self.outputs}
        outputs = {name: self.digests.of_tree(part, str(self.out / name)) for name, part in parts.items()}
        whole = {
            "stage": self.name,
            "made_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": round(time.monotonic() - self.started, 3),
            "ledger": self.ledger.as_dict(),
            "inputs": self.inputs,
            "settings": self.settings,
            "outputs": outputs,
            "identity": {"results": self.results, "sha256": self._identity()},
            "files": msgspec.to_builtins(self.digests.files),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in self.packages}},
            **self.receipt,
        }
        self.receipt = whole
        receipt = self._receipt_part(self.receipt)  # now, when a full disk does no harm
        remove(self.out / "receipt.json")  # never beside outputs that it does not name, whatever happens here
        for name in self.outputs:
            if (self.out / name).is_dir():  # a folder cannot be renamed over one that is not empty
                remove(self.out / name)
            parts[name].replace(self.out / name)
        for name in set(self.earlier.get("outputs", {})) - set(self.outputs):
            remove(self.out / name)
        receipt.replace(self.out / "receipt.json")

    def _receipt_part(self, content):
        """Write a receipt under another name and return its path. Its date is that at which the stage began: what was
        edited while it ran is newer for Make, and the stage to do again."""
        part = self.out / ".receipt.json.part"
        text = json.dumps(without_credentials(content), ensure_ascii=False, indent=1)
        part.write_text(text + "\n", encoding="utf-8")
        os.utime(part, ns=(self.newest, self.newest))
        return part

    def _remove_parts(self):
        for part in self.out.glob(".*.part"):
            remove(part)


def arguments(doc: str | None, *names: str, config: bool = True, out: bool = True) -> argparse.ArgumentParser:
    """Return a parser whose help is `doc`, with the positional paths `names`, and `--config` and `--out` if wanted."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in names:
        parser.add_argument(name, type=Path)
    if config:
        parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="settings of this stage")
    if out:
        parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder of the results")
    return parser


def noted_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option with which Make names its note of the history: it changes when the history does."""
    parser.add_argument("--noted", type=Path, default=Path(), metavar="FILE", help="Make's note of what the source is")


class Numbers(msgspec.Struct):
    """The ledger of a receipt."""

    read: int
    written: int
    dropped: dict[str, int]
    merged: int = 0


class Used(msgspec.Struct):
    """A settings file in a receipt."""

    sha256: str


class Base(msgspec.Struct):
    """The base model in a receipt."""

    sha256: dict[str, str]
    folder: str = ""


class Made(msgspec.Struct):
    """The Ollama model in a receipt."""

    name: str
    digest: str


class Training(msgspec.Struct):
    """A training in a receipt: one from whose adapter another one went on."""

    made_at: str
    adapter: str
    samples: int
    learnt_until: datetime | None


class Threshold(msgspec.Struct):
    """The confidence from which on the linker decides in a group, in a receipt."""

    threshold: float | None


class Identity(msgspec.Struct):
    """What a result was made of."""

    results: int
    sha256: str


class Receipt(msgspec.Struct):
    """What a receipt must have, and the types of some fields that it may have."""

    stage: str
    seconds: float
    ledger: Numbers
    inputs: dict[str, str]
    settings: dict[str, Used]
    outputs: dict[str, str | dict[str, str]]
    made_at: str = ""
    identity: Identity | None = None
    files: dict[str, File] = {}
    base_model: Base | None = None
    ollama: Made | None = None
    newest_turn: datetime | None = None
    learnt_until: datetime | None = None
    held_out_from: datetime | None = None
    continued_from: list[Training] = []
    linker: dict[str, Threshold] = {}


def read_receipt(folder: Path | str) -> dict[str, Any]:
    """Return the receipt in `folder`, {} where there is none. What has not the shape of a receipt, or names outputs
    outside the folder, is none: what it names is deleted or read."""
    try:
        content = json.loads((Path(folder) / "receipt.json").read_text(encoding="utf-8"))
        receipt = msgspec.convert(content, Receipt)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError, RecursionError, msgspec.MsgspecError):
        return {}
    trees = [digests for digests in receipt.outputs.values() if isinstance(digests, dict)]
    files = [*trees, *([receipt.base_model.sha256] if receipt.base_model else [])]
    inside = all(map(is_plain, receipt.outputs)) and all(
        all(map(is_plain, name.split("/"))) for digests in files for name in digests
    )
    return content if inside else {}


def is_plain(name: str) -> bool:
    """Whether `name` is that of something in a folder itself, and of nothing elsewhere."""
    return name.isprintable() and "/" not in name and name not in ("", ".", "..")


def need_receipt(folder: Path, made_by: str, *fields: str) -> dict[str, Any]:
    """Return the receipt in `folder`; `UserError` if there is none with these `fields`, which ends with `made_by`."""
    path = need(folder / "receipt.json", made_by)
    receipt = read_receipt(folder)
    if not receipt or not receipt.keys() >= set(fields):
        raise UserError(f"{path}: not the receipt of that stage; {made_by}")
    return receipt


def known_files(receipt: dict[str, Any]) -> dict[str, File]:
    return {path: msgspec.convert(file, File) for path, file in receipt.get("files", {}).items()}


def say(line: str) -> None:
    """Print a line that comes when all is done: that nobody can read it is no failure."""
    try:
        print(translated(line), flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would try it again as it ends


@contextmanager
def unchanged(path: Path) -> Iterator[None]:
    """`UserError` if the file at `path`, or the log of that database, has changed when the block ends: what was read is
    then neither the old nor the new content."""
    before = state(path.resolve())
    yield
    if state(path.resolve()) != before:
        raise UserError(f"{path}: was written to while it was read; close the program that writes it and start again")


def state(path: Path) -> list[tuple[int, int, int]]:
    """Return inode, size and date of a file and of its log (`-wal`), where a database's new rows go first."""
    files = [file.stat() for file in (path, path.with_name(path.name + "-wal")) if file.exists()]
    return [(file.st_ino, file.st_size, file.st_mtime_ns) for file in files]


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def need(path: Path, made_by: str) -> Path:
    """Return `path` if there is such a file; `UserError` otherwise, which ends with `made_by`: what makes the file."""
    if not Path(path).is_file():
        there = Path(path).exists()
        raise UserError(f"{path}: {'not an ordinary file' if there else 'no such file'}; {anew(Path(path), made_by)}")
    return Path(path)


def read_text(path: Path, made_by: str) -> str:
    """Return the UTF-8 text of the file at `path`; `UserError` for no such file or text, which ends with `made_by`."""
    try:
        return need(path, made_by).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; {anew(Path(path), made_by)}") from None


def anew(path: Path, made_by: str) -> str:
    """Return how the file at `path` is made anew: `made_by`, but what a receipt beside it names Make takes for done."""
    receipt = read_receipt(path.parent)
    if path.name not in receipt.get("outputs", {}):
        return made_by
    return f"delete {path.with_name('receipt.json')}, then `make {receipt['stage']}` makes it"
