"""The kinds of columns and indexes that the tables are made of, the same on SQLite and PostgreSQL."""

from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, Text
from sqlalchemy import text as sql
from sqlmodel import Field

STRICT = {"sqlite_strict": True}
_INT = BigInteger().with_variant(Integer, "sqlite")


def integer(*, key: bool = False, default: int | None = None, to: str | None = None) -> Any:
    """Return a column of whole numbers; *to* is what it refers to."""
    return column(_INT, key=key, default=default, to=to)


def text(*, key: bool = False) -> Any:
    """Return a column of text."""
    return column(Text(), key=key)


def column(kind: Any, *, key: bool, default: int | None = None, to: str | None = None) -> Any:
    """Return a column of any kind."""
    return Field(
        default=default,
        primary_key=key,
        sa_type=kind,
        sa_column_args=[ForeignKey(to)] if to else [],
        sa_column_kwargs={} if default is None else {"server_default": str(default)},
    )


def where(condition: str) -> dict[str, Any]:
    """Return what makes an index one of those rows only."""
    return {"sqlite_where": sql(condition), "postgresql_where": sql(condition)}


def where_set(name: str, *columns: str, unique: bool = False) -> Index:
    """Return an index of the rows in which the last column is set: most have nothing there."""
    return Index(name, *columns, unique=unique, **where(f"{columns[-1]} IS NOT NULL"))
