"""The file behind a SQLite ledger: never made by opening it, and opened anew where it was replaced."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from polarcredits.errors import DatabaseError
from polarcredits.ledger import schema
from polarcredits.ledger.async_ledger import AsyncLedger
from polarcredits.ledger.database import Database
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.sqlite_file import Opened, begin_writing
from polarcredits.ledger.views import history, statement
from tests.ledger.worlds import catalog


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An empty, migrated file."""
    path = tmp_path / "credits.db"
    schema.make_if_absent(f"sqlite:///{path}")
    return path


def balance(ledger: Ledger, user: str) -> int:
    """Return a user's balance."""
    return statement(ledger, user).balance.balance


def test_a_missing_file_is_not_made(tmp_path: Path) -> None:
    """An empty file of everybody's would take the place of a ledger that somebody only moved away."""
    path = tmp_path / "moved.db"
    database = Database(f"sqlite:///{path}")
    try:
        with pytest.raises(DatabaseError, match="unable to open"):
            database.read(schema.check)
    finally:
        database.close()
    assert not path.exists()


def test_a_restored_file_is_used_at_once(file: Path, tmp_path: Path) -> None:
    """Deductions, grants and reads all go to the file that has taken the old one's place."""
    backup = tmp_path / "backup.db"
    with Ledger(f"sqlite:///{file}", catalog(), actor="test") as ledger:
        ledger.add_user("mia")
        ledger.deduct("mia", 1)
        schema.backup(ledger.database, backup)
        ledger.deduct("mia", 10)
        assert balance(ledger, "mia") == 989
        for old in file.parent.glob("credits.db*"):
            old.unlink()
        os.replace(backup, file)
        assert ledger.deduct("mia", 100).balance == 899
        ledger.grant("mia", 5, reason="after", idempotency_key="after")
        assert balance(ledger, "mia") == 904
    with Ledger(f"sqlite:///{file}", catalog(), actor="test") as again:
        assert [entry.amount for entry in history(again, "mia")] == [5, -100, -1, 1000]


def test_nothing_is_written_to_a_file_that_is_gone(file: Path, tmp_path: Path) -> None:
    """Each door refuses, without making a file; with the file back all is as it was."""
    away = tmp_path / "away"
    away.mkdir()
    url = f"sqlite:///{file}"
    with Ledger(url, catalog(), actor="test") as ledger:
        ledger.add_user("mia")
        ledger.deduct("mia", 1)
        for each in file.parent.glob("credits.db*"):
            shutil.move(each, away)
        for door in (
            lambda: ledger.deduct("mia", 1),
            lambda: ledger.grant("mia", 5, reason="lost", idempotency_key="lost"),
            lambda: statement(ledger, "mia"),
        ):
            with pytest.raises(DatabaseError):
                door()
        assert not file.exists()
        for each in away.iterdir():
            shutil.move(each, file.parent)
        assert balance(ledger, "mia") == 999
        assert ledger.deduct("mia", 1).balance == 998


def test_tasks_meet_a_file_that_is_gone(file: Path, tmp_path: Path) -> None:
    """The asyncio front refuses too, every caller for itself, and goes on with the file back."""
    url = f"sqlite:///{file}"
    away = tmp_path / "away.db"
    with Ledger(url, catalog(), actor="test") as ledger:
        ledger.add_user("mia")

    async def trial() -> None:
        async with AsyncLedger(Ledger(url, catalog(), actor="test")) as ledger:
            await ledger.deduct("mia", 1)
            file.rename(away)
            failed = await asyncio.gather(
                *(ledger.deduct("mia", 1) for _ in range(8)), return_exceptions=True
            )
            assert all(isinstance(each, DatabaseError) for each in failed)
            assert not file.exists()
            away.rename(file)
            assert (await ledger.deduct("mia", 1)).balance == 998

    asyncio.run(trial())


def test_a_log_that_is_left_alone(file: Path) -> None:
    """No new database is made beside the log of one that is gone: SQLite would take the log for its own."""
    url = f"sqlite:///{file}"
    left, away = Path(f"{file}-wal"), file.with_name("away.db")
    with Ledger(url, catalog(), actor="test") as ledger:
        ledger.add_user("mia")
        log = left.read_bytes()
        shutil.move(file, away)
        with pytest.raises(DatabaseError, match=r"is gone, but credits\.db-wal is still beside it"):
            schema.open_database(url)
        assert left.read_bytes() == log
        assert not file.exists()
        shutil.move(away, file)
        assert ledger.deduct("mia", 1).balance == 999
    left.touch()
    shutil.move(file, away)
    with Ledger(url, catalog(), actor="test") as anew:
        anew.add_user("ann")
        assert balance(anew, "ann") == 1000


def test_a_file_that_was_gone_as_soon_as_it_was_opened(file: Path) -> None:
    """Nobody knows which file the connection has: it is not the one that is missing."""
    file.unlink()
    assert not Opened(str(file), None).is_current()


@pytest.mark.parametrize("code", [sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY_RECOVERY])
def test_whatever_keeps_the_file_busy_is_waited_for(code: int) -> None:
    """Another process may write, or read its log again after somebody crashed."""
    busy = sqlite3.OperationalError("database is locked")
    busy.sqlite_errorcode = code
    answers = [busy, busy]

    def begin() -> None:
        if answers:
            raise answers.pop()

    begin_writing(begin, patience=60)
    assert answers == []


@pytest.mark.parametrize("given", ["nan", "-1", "inf", "1e9", "abc"])
def test_a_patience_that_is_no_number_of_seconds(given: str, file: Path) -> None:
    """Refused where the database is opened, in words that name it."""
    with pytest.raises(DatabaseError, match="timeout in the database URL must be seconds"):
        Database(f"sqlite:///{file}?timeout={given}")


def test_a_parameter_that_is_unknown(file: Path) -> None:
    """Refused and named: who writes `mode=ro` would else believe that nothing can be written."""
    absent = file.with_name("absent.db")
    for each in (file, absent):
        with pytest.raises(DatabaseError, match="mode, vfs in the database URL is unknown"):
            schema.open_database(f"sqlite:///{each}?vfs=unix&timeout=2&mode=ro")
    assert not absent.exists()
