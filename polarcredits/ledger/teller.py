"""The teller: takes batches of deductions, each in one transaction, on a connection that it keeps.

Nothing of SQLAlchemy but its pool stands between the hot path and the driver.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from polarcredits.errors import DatabaseError
from polarcredits.ledger.database import Database
from polarcredits.ledger.failing import RAISED, again, anew, is_of_a_request
from polarcredits.ledger.hotpath import Spend, Spent, spend
from polarcredits.ledger.setwise import spend_all
from polarcredits.ledger.sqlite_file import OPENED, Opened, begin_writing

_STALE_SECONDS = 5.0
_STUCK_SECONDS = 0.5
_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
_LOCK_TIMEOUT = "55P03"
_LOCKED_MILLISECONDS = 100
"""How long a batch waits for a row: then it goes on without those who want what is locked."""


def teller_of(database: Database) -> Teller:
    """Return the teller of one group; never used by two threads at once."""
    return SqliteTeller(database) if database.sqlite else PostgresTeller(database)


class Teller(ABC):
    """Deducts for one group on a connection of its own, opened anew where it is of no use any more."""

    stuck: float | None = None
    """After how many seconds of one batch others may spend on connections of their own."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._driver: Any = None
        self._cursor: Any = None
        self._sound = False
        """Whether the last batch on the connection came to its end: else it is never used again."""
        database.keepers.add(self)

    def spend(self, batch: Sequence[Spend]) -> Sequence[Spent | Exception | None]:
        """Deduct what can be and commit; None in the place of each miss, of which nothing is written.

        What the database cannot keep of one request is that one's answer. Raises DatabaseBusy or
        DatabaseError; then nothing of the batch is acknowledged.
        """
        try:
            return self._once(batch)
        except RAISED as error:
            return self._anew(error, batch)

    def _anew(self, failed: Exception, batch: Sequence[Spend]) -> Sequence[Spent | Exception | None]:
        try:
            return anew(failed, self._once, batch)
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
        self._sound = False
        driver, self._driver, self._cursor = self._driver, None, None
        if driver is not None:
            try:
                self._undo(driver)
            finally:
                driver.close()

    def _once(self, batch: Sequence[Spend]) -> list[Spent | None]:
        sound, self._sound = self._sound, False
        try:
            if not sound:
                self._open()
            answers = self._take(batch)
            self._sound = True
            return answers
        except self._database.driver_error as error:
            self._database.raise_wrapped(error)
        finally:
            if not self._sound:
                self.close()

    def _open(self) -> None:
        """Take a connection out of the pool for good: the pool does not count it, nor get it back."""
        self.close()
        taken = self._database.engine.raw_connection()
        driver, opened = taken.driver_connection, taken.info.get(OPENED)
        taken.detach()
        self._driver, self._cursor = driver, self._database.raw_cursor(driver)
        self._set_up(driver, opened)

    @abstractmethod
    def _set_up(self, driver: Any, opened: Opened | None) -> None:
        """Make a new connection ready."""

    @abstractmethod
    def _undo(self, driver: Any) -> None:
        """Give up what the connection did not commit, before it is closed."""

    @abstractmethod
    def _take(self, batch: Sequence[Spend]) -> list[Spent | None]:
        """Deduct in one transaction, on a connection that is still of use: else on a new one."""

    def forget_the_parent(self) -> None:
        """Leave the parent's connection alone, in a forked child: neither used nor closed."""
        _inherited.append((self._driver, self._cursor))
        self._driver = self._cursor = None
        self._sound = False


class SqliteTeller(Teller):
    """Deducts in a SQLite file, as long as it is the one that is there."""

    _begin: Callable[[], object]
    _is_current: Callable[[], bool]

    def _set_up(self, driver: Any, opened: Opened | None) -> None:
        self._cursor.execute("PRAGMA busy_timeout=0")
        self._begin = partial(self._cursor.execute, "BEGIN IMMEDIATE")
        assert opened is not None
        self._is_current = opened.is_current

    def _once(self, batch: Sequence[Spend]) -> list[Spent | None]:
        with self._database.turn:
            return super()._once(batch)

    def _undo(self, driver: Any) -> None:
        # A statement that failed half-way would keep the file locked beyond the close.
        driver.rollback()

    def _take(self, batch: Sequence[Spend]) -> list[Spent | None]:
        if not self._is_current():
            self._open()
        cursor = self._cursor
        begin_writing(self._begin, self._database.patience)
        if len(batch) == 1:
            answers = [spend(cursor, batch[0], sqlite=True)]
        else:
            answers = spend_all(cursor, batch, sqlite=True)
        cursor.execute("COMMIT")
        return answers


class PostgresTeller(Teller):
    """Deducts on a server, and holds up nobody for long who wants what is not locked."""

    stuck = _STUCK_SECONDS
    _used = 0.0
    _alone = False
    """Whether a statement by itself is READ COMMITTED."""

    def _set_up(self, driver: Any, opened: Opened | None) -> None:
        from polarcredits.ledger.quick_cursor import QuickCursor

        driver.autocommit = True
        self._cursor = QuickCursor(driver)
        level = self._cursor.execute("SHOW default_transaction_isolation").fetchone()
        self._alone = level == ("read committed",)
        self._used = time.monotonic()

    def _undo(self, driver: Any) -> None:
        # The server does so itself when the connection ends; to ask it might mean to wait for it.
        return

    def _take(self, batch: Sequence[Spend]) -> list[Spent | None]:
        """Take one alone in one round trip; where that misses, its row locked first."""
        if time.monotonic() - self._used > _STALE_SECONDS and not self._answers():
            self._open()
        answers = None
        if len(batch) == 1 and self._alone:
            spent = spend(self._cursor, batch[0], sqlite=False)
            if spent is not None or batch[0].key is None:  # else the key may be in use, or just not seen
                answers = [spent]
        if answers is None:
            answers = self._in_one(batch)
        self._used = time.monotonic()
        return answers

    def _in_one(self, batch: Sequence[Spend]) -> list[Spent | None]:
        """Take many in two or three round trips; who wants a row that stays locked is a miss."""
        cursor = self._cursor
        try:
            cursor.delay(_BEGIN)
            cursor.delay(f"SET LOCAL lock_timeout = {_LOCKED_MILLISECONDS}")
            answers = spend_all(cursor, batch, sqlite=False)
            cursor.execute("COMMIT")
        except self._database.driver_error as error:
            if getattr(error, "sqlstate", None) != _LOCK_TIMEOUT:
                raise
            cursor.execute("ROLLBACK")
            cursor.delay(_BEGIN)
            answers = spend_all(cursor, batch, sqlite=False, skip_locked=True)
            cursor.execute("COMMIT")
        return answers

    def _answers(self) -> bool:
        """Say whether the server still answers."""
        try:
            self._cursor.execute("SELECT 1")
        except self._database.driver_error:
            return False
        return True


_inherited: list[object] = []
