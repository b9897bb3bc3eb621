"""What fails in a database: told in our words, or, if it only lost a race, run again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from sqlalchemy import exc

from polarcredits.errors import DatabaseBusy, DatabaseError, InvalidInput, PolarCreditsError

Given = TypeVarTuple("Given")
T = TypeVar("T")
_TRIES = 8
_PAUSE_SECONDS = 0.01
_PREPARED_ELSEWHERE = frozenset({"26000", "42P05"})
_AGAIN = frozenset({"40001", "40P01", "23505"}) | _PREPARED_ELSEWHERE
_OF_A_REQUEST = ("22", "54")
_OF_A_FILE = {
    "file is not a database": "The file is no SQLite database",
    "attempt to write a readonly database": "The database's file or folder cannot be written",
    "unable to open database file": "The database's file cannot be opened",
}
RAISED = (exc.DBAPIError, exc.TimeoutError, UnicodeEncodeError)
"""What is raised where the database, or its pool, fails."""


def again(once: Callable[[*Given], T], *given: *Given) -> T:
    """Run a transaction, and whole again if it lost a race, after a pause that grows.

    Raises DatabaseBusy, DatabaseError or InvalidInput for what the database raises.
    """
    try:
        return once(*given)
    except RAISED as error:
        return anew(error, once, *given)


def anew(error: Exception, once: Callable[[*Given], T], *given: *Given) -> T:
    """Run what failed with *error* again, as `again` does."""
    for attempt in range(_TRIES - 1):
        if not may_succeed_again(error):
            break
        time.sleep(random.random() * _PAUSE_SECONDS * attempt)
        try:
            return once(*given)
        except RAISED as another:
            error = another
    raise _told(error) from error


class _Failures:
    """Turns what a driver raises into our errors, where nobody runs it again."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Raise our error in place of the driver's."""
        if isinstance(error, RAISED):
            raise _told(error) from error


failures = _Failures()


def may_succeed_again(error: Exception) -> bool:
    """Say whether what failed only lost a race, and is to be run again, whole."""
    if not isinstance(error, exc.DBAPIError):
        return False
    return getattr(error.orig, "sqlstate", None) in _AGAIN or _is_of_an_old_plan(error.orig)


def _is_of_an_old_plan(error: BaseException | None) -> bool:
    """Say whether a statement was prepared before a migration; the text of this error is translated."""
    return getattr(getattr(error, "diag", None), "source_function", None) == "RevalidateCachedQuery"


def is_of_a_request(error: DatabaseError) -> bool:
    """Say whether a request held what the database cannot keep: those beside it may well succeed."""
    cause = error.__cause__
    state = getattr(cause.orig, "sqlstate", None) if isinstance(cause, exc.DBAPIError) else None
    return (state or "").startswith(_OF_A_REQUEST)


def closed() -> DatabaseError:
    """Return what a caller gets that comes after the close."""
    return DatabaseError("The ledger is closed; open it again.")


def _told(error: Exception) -> PolarCreditsError:
    if isinstance(error, UnicodeEncodeError):
        return InvalidInput(f"{str(error.object)[:40]!r} cannot be kept: it is not UTF-8 text.")
    if not isinstance(error, exc.DBAPIError):
        return DatabaseBusy("No database connection became free in time; try again.")
    if getattr(error.orig, "sqlstate", None) in _PREPARED_ELSEWHERE:
        return DatabaseError(
            "A pooler on the way to the database does not keep prepared statements:"
            " add ?prepare_threshold=none to POLARCREDITS_DATABASE_URL."
        )
    return DatabaseBusy("The database is too busy; try again.") if may_succeed_again(error) else named(error)


def named(error: exc.DBAPIError) -> DatabaseError:
    """Return our error for a driver's."""
    text = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else "unknown failure"
    if "database is locked" in text or "lock timeout" in text:
        return DatabaseBusy("The database is locked by another writer; try again.")
    if "no such table" in text or ("does not exist" in text and "relation" in text):
        return DatabaseError("The database is not migrated. Run: polarcredits db upgrade")
    for what, meaning in _OF_A_FILE.items():
        if what in text:
            return DatabaseError(
                f"{meaning} ({text}). Look at the file that POLARCREDITS_DATABASE_URL names."
            )
    if isinstance(error, exc.OperationalError) and getattr(error.orig, "sqlstate", "") is None:
        return DatabaseError(
            f"The database cannot be reached: {text}. Is it running, and is POLARCREDITS_DATABASE_URL right?"
        )
    return DatabaseError(f"The database refused: {text}")
