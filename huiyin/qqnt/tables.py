"""The wanted tables of a database: their columns, and what became of their rows."""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from huiyin.common.errors import UserError

KEEP_FREE = 16 << 20  # bytes of the disk of the result
# What a CREATE TABLE without a query does; anything else in its place is not executed.
CREATES_A_TABLE = {
    *(sqlite3.SQLITE_CREATE_TABLE, sqlite3.SQLITE_CREATE_INDEX, sqlite3.SQLITE_REINDEX),
    *(sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_READ),
}
Refuse = Callable[..., None]  # called with what is damaged; it may raise


@dataclass
class Table:
    """The result for one table. `stored_as` is its name in the source, `definition` the columns with their types in
    parentheses, `columns` their names, `selected` these for a query. `lost_pages` are damaged; `key_gaps` are the keys
    before and after each run of missing rows (None: no row on that side); `orphan_leaves` cannot be reached through the
    tree in the order of the keys."""

    name: str
    stored_as: str
    definition: str
    columns: list[str]
    rows: int = 0
    lost_rows: int = 0
    lost_pages: list[int] = field(default_factory=list)
    key_gaps: list[tuple[int | None, int | None]] = field(default_factory=list)
    orphan_leaves: list[int] = field(default_factory=list)

    @property
    def selected(self) -> str:
        return ", ".join(f"[{column}]" for column in self.columns)

    @property
    def is_damaged(self) -> bool:
        return bool(self.lost_pages or self.lost_rows or self.key_gaps or self.orphan_leaves)


def lossy_text(text: bytes) -> str:
    """Decode a text of the schema, which may be damaged in a table that is not wanted."""
    return text.decode("utf-8", "replace")


def plain_tables(schema: Iterable[Sequence[str]], names: Iterable[str], source: Path) -> dict[str, Table]:
    """Return {name: Table} for those of `names` that `schema` has, rows of (type, name, sql)."""
    stored = {name.lower(): (kind, name, sql) for kind, name, sql in schema if kind in ("table", "view")}
    tables = {}
    for name in names:
        kind, stored_as, sql = stored.get(name, ("", "", ""))
        try:
            if kind == "view":
                raise ValueError("a view")
            if kind:
                tables[name] = Table(name, stored_as, *plain_columns(stored_as, sql))
        except ValueError as error:
            raise UserError(f"{source}: {name} is not stored like an ordinary table ({error})") from None
    return tables


def plain_columns(name: str, sql: str) -> tuple[str, list[str]]:
    """Return the definition and the names of the columns in the CREATE statement `sql`, without constraints and so
    without indexes; `ValueError` if the rows are not stored like those of an ordinary table."""
    try:
        with closing(sqlite3.connect(":memory:")) as connection:
            columns = created(connection, sql, name)
            connection.execute(f"SELECT rowid FROM [{name}]")
        keys, parts = [column for *_, key, column in columns if key], []
        for kind, default, key, column in columns:
            # an INTEGER key of one column is the rowid, which is not stored a second time
            rowid = key and len(keys) == 1 and kind.upper() == "INTEGER" and "DESC" not in sql.upper()
            ending = (" PRIMARY KEY" if rowid else "") + (f" DEFAULT {default}" if default is not None else "")
            parts.append(f"[{column}] {kind}{ending}")
        definition, names = f"({', '.join(parts)})", [column for *_, column in columns]
        with closing(sqlite3.connect(":memory:")) as connection:
            again = created(connection, f"CREATE TABLE [{name}] {definition}", name)
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise ValueError(str(error)) from None
    # quotes are gone: a column may be called `x], (SELECT ...) AS [y`, or have such a type
    if [(kind, column) for kind, *_, column in again] != [(kind, column) for kind, *_, column in columns]:
        raise ValueError("a name or a type in it is a piece of SQL")
    return definition, names


def created(connection: sqlite3.Connection, statement: str, name: str) -> list[tuple[str, str | None, int, str]]:
    """Let `statement` create the table `name`, and do nothing else; return (type, default, place in the key, name) of
    its columns. `sqlite3.Error`, or `ValueError` for a column that is computed."""
    connection.set_authorizer(
        lambda action, *_: sqlite3.SQLITE_OK if action in CREATES_A_TABLE else sqlite3.SQLITE_DENY
    )
    connection.execute(statement)
    connection.set_authorizer(None)
    rows = connection.execute(f"PRAGMA table_xinfo([{name}])").fetchall()
    if any(hidden for *_, hidden in rows):
        raise ValueError("a column in it is computed")
    return [(kind, default, key, column) for _, column, kind, _, default, key, _ in rows]
