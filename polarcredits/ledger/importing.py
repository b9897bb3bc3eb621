"""Users from a CSV or JSON Lines file; a broken line stops nobody else's."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from polarcredits.errors import InvalidInput, PolarCreditsError
from polarcredits.ledger import identity, requests
from polarcredits.ledger import tables as t
from polarcredits.ledger.ledger import Ledger
from polarcredits.userids import check_new_user

_COLUMNS = ("id", "email", "name")


def import_users(ledger: Ledger, file: Path, *, dry_run: bool = False) -> dict[str, Any]:
    """Add or update the users of *file* in one transaction; existing ones keep their credits."""
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{file} is not UTF-8 text.") from error
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror}.") from error
    rows = list(_json_lines(text) if text.lstrip().startswith("{") else _csv(text, file))

    def work(connection: Connection) -> dict[str, Any]:
        report: dict[str, Any] = {"added": 0, "updated": 0, "unchanged": 0, "failed": []}
        for line, row in rows:
            try:
                report[_import(ledger, connection, row)] += 1
            except PolarCreditsError as error:
                report["failed"].append({"line": line, "error": error.message})
        return report

    return ledger.in_transaction(work, dry_run=dry_run)


def _import(ledger: Ledger, connection: Connection, row: object) -> str:
    if not isinstance(row, dict):
        raise InvalidInput(str(row))
    unknown = [key for key in row if key not in _COLUMNS]
    if unknown:
        raise InvalidInput(f"unknown column {unknown[0]!r}; known are id, email, name")
    if any(not isinstance(value, str | None) for value in row.values()):
        raise InvalidInput("id, email and name must be texts")
    for column in ("email", "name"):
        requests.check_text(row.get(column) or None, column)
    user = check_new_user(row.get("id") or "")
    email, name = row.get("email") or None, row.get("name") or None
    a = t.accounts.c
    before = connection.execute(select(a.email, a.name).where(a.user_id == user)).first()
    identity.add(connection, ledger.catalog, user, ledger.call(), email=email, name=name)
    if before is None:
        return "added"
    after = connection.execute(select(a.email, a.name).where(a.user_id == user)).one()
    return "unchanged" if tuple(before) == tuple(after) else "updated"


def _csv(text: str, file: Path) -> Iterator[tuple[int, object]]:
    reader = csv.DictReader(io.StringIO(text), strict=True)
    columns = reader.fieldnames or []
    unknown = [name for name in columns if name not in _COLUMNS]
    if unknown:
        raise InvalidInput(f"{file}: unknown column {unknown[0]!r}; known are id, email, name.")
    if "id" not in columns:
        raise InvalidInput(f"{file}: the column id is missing.")
    try:
        for row in reader:
            extra = row.pop(None, None) if None in row else None
            yield reader.line_num, "more cells than columns" if extra else row
    except csv.Error as error:
        yield reader.line_num, f"not CSV: {error}"


def _json_lines(text: str) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                loaded = json.loads(line)
            except (ValueError, RecursionError):
                loaded = "not JSON"
            yield number, loaded if isinstance(loaded, (dict, str)) else "not an object"
