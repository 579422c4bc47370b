"""sha256 of files, kept with size and date, so that what has both unchanged is not read again."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec


class File(msgspec.Struct):
    """What a receipt keeps of a file."""

    size: int
    mtime_ns: int
    sha256: str


class Digests:
    """The digests of files, by path as text; `known`: those of earlier receipts."""

    def __init__(self, known: Mapping[str, File]):
        self.known, self.files = dict(known), dict[str, File]()

    def of(self, path: Path, name: str | None = None) -> str:
        """Return the sha256 of the file at `path` and keep it as that of `name`, by default the path itself."""
        state, name = path.stat(), name or str(path)
        known = self.known.get(name)
        same = known is not None and (known.size, known.mtime_ns) == (state.st_size, state.st_mtime_ns)
        self.keep(path, known.sha256 if known and same else sha256(path), name)
        return self.files[name].sha256

    def keep(self, path: Path, digest: str, name: str | None = None) -> None:
        state = path.stat()
        self.files[name or str(path)] = File(state.st_size, state.st_mtime_ns, digest)

    def of_tree(self, path: Path, name: str | None = None) -> Any:
        """Return the sha256 of a file, or {relative name: sha256} of a folder."""
        if not path.is_dir():
            return self.of(path, name)
        inside = {str(file.relative_to(path)): file for file in sorted(path.rglob("*")) if file.is_file()}
        return {relative: self.of(file, f"{name or path}/{relative}") for relative, file in inside.items()}


def sha256(path: Path | str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_tree(path: Path) -> Any:
    """Return the sha256 of a file, or {relative name: sha256} of a folder, all read."""
    return Digests({}).of_tree(path)


def digest(*parts: object) -> str:
    """Return the sha256 of `parts` as canonical JSON."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
