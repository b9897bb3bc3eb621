"""The teller: takes batches of deductions, each in one transaction, on a connection that it keeps.

Nothing of SQLAlchemy but its pool stands between the hot path and the driver.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from polarcredits.errors import DatabaseError
from polarcredits.ledger.database import Database
from polarcredits.ledger.failing import again, is_of_a_request
from polarcredits.ledger.hotpath import Spend, Spent, spend
from polarcredits.ledger.setwise import spend_all
from polarcredits.ledger.sqlite_file import OPENED, Opened, begin_writing

_STALE_SECONDS = 5.0
_STUCK_SECONDS = 0.5
_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
_LOCK_TIMEOUT = "55P03"
_LOCKED_MILLISECONDS = 100
"""How long a batch waits for a row: then it goes on without those who want what is locked."""


class Teller:
    """Deducts for one group; never used by two threads at once."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.stuck = None if database.sqlite else _STUCK_SECONDS
        """After how many seconds of one batch others may spend on connections of their own."""
        self._driver: Any = None
        self._cursor: Any = None
        self._begin: Any = None
        self._opened: Opened | None = None
        self._bare = False
        self._used = 0.0
        database.keepers.add(self)

    def spend(self, batch: Sequence[Spend]) -> Sequence[Spent | Exception | None]:
        """Deduct what can be and commit; None in the place of each miss, of which nothing is written.

        What the database cannot keep of one request is that one's answer. Raises DatabaseBusy or
        DatabaseError; then nothing of the batch is acknowledged.
        """
        try:
            return again(self._once, batch)
        except DatabaseError as error:
            if len(batch) == 1 or not is_of_a_request(error):
                raise
            return [self._apart(wanted) for wanted in batch]

    def _apart(self, wanted: Spend) -> Spent | Exception | None:
        try:
            return again(self._once, (wanted,))[0]
        except DatabaseError as error:
            return error

    def close(self) -> None:
        """Close the connection; what it had not committed is undone."""
        driver, self._driver, self._cursor = self._driver, None, None
        if driver is not None:
            try:
                if self._database.sqlite:
                    # A statement that failed half-way would keep the file locked beyond the close.
                    driver.rollback()
            finally:
                driver.close()

    def _once(self, batch: Sequence[Spend]) -> list[Spent | None]:
        answers = None
        with self._database.turn:
            try:
                if self._driver is None or not self._alive():
                    self._open()
                answers = self._sqlite(batch) if self._database.sqlite else self._postgresql(batch)
                return answers
            except self._database.driver_error as error:
                self._database.raise_wrapped(error)
            finally:
                if answers is None:
                    self.close()

    def _sqlite(self, batch: Sequence[Spend]) -> list[Spent | None]:
        cursor = self._cursor
        begin_writing(self._begin, self._database.patience)
        if len(batch) == 1:
            answers = [spend(cursor, batch[0], sqlite=True)]
        else:
            answers = spend_all(cursor, batch, sqlite=True)
        cursor.execute("COMMIT")
        return answers

    def _postgresql(self, batch: Sequence[Spend]) -> list[Spent | None]:
        """Take one alone in one round trip; where that misses, its row locked first."""
        cursor = self._cursor
        if len(batch) == 1 and self._bare:
            spent = spend(cursor, batch[0], sqlite=False)
            if spent is not None or batch[0].key is None:
                self._used = time.monotonic()
                return [spent]
        try:
            cursor.execute(f"{_BEGIN}; SET LOCAL lock_timeout = {_LOCKED_MILLISECONDS}", prepare=False)
            answers = spend_all(cursor, batch, sqlite=False)
        except self._database.driver_error as error:
            if getattr(error, "sqlstate", None) != _LOCK_TIMEOUT:
                raise
            cursor.execute("ROLLBACK")
            cursor.execute(_BEGIN)
            answers = spend_all(cursor, batch, sqlite=False, skip_locked=True)
        cursor.execute("COMMIT")
        self._used = time.monotonic()
        return answers

    def _open(self) -> None:
        """Take a connection out of the pool for good: the pool does not count it, nor get it back."""
        taken = self._database.engine.raw_connection()
        driver: Any = taken.driver_connection
        opened: Opened | None = taken.info.get(OPENED)
        taken.detach()
        cursor = self._database.raw_cursor(driver)
        if self._database.sqlite:
            cursor.execute("PRAGMA busy_timeout=0")
            self._begin = partial(cursor.execute, "BEGIN IMMEDIATE")
            self._opened = opened
        else:
            driver.autocommit = True
            level = cursor.execute("SHOW default_transaction_isolation").fetchone()
            self._bare = level == ("read committed",)
        self._used = time.monotonic()
        self._cursor, self._driver = cursor, driver

    def _alive(self) -> bool:
        """Say whether the connection's file is still there, or its server still answers; else close it."""
        if self._opened is not None:
            alive = self._opened.is_current()
        elif time.monotonic() - self._used < _STALE_SECONDS:
            alive = True
        else:
            alive = self._answers()
        if not alive:
            self.close()
        return alive

    def _answers(self) -> bool:
        try:
            self._cursor.execute("SELECT 1")
        except self._database.driver_error:
            return False
        return True

    def forget_the_parent(self) -> None:
        """Leave the parent's connection alone, in a forked child: neither used nor closed."""
        _inherited.append((self._driver, self._cursor))
        self._driver = self._cursor = None


_inherited: list[object] = []
