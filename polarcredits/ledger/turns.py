"""Whose turn it is to write to a SQLite file, and how a process forks: with nobody at work on one.

A connection of SQLite must not be carried into a child. The locks of its file belong to the process
that took them, but SQLite's own notes of them are inherited: the child would write without a lock, to a
file that others may take for unused and clean up, or wait for ever for a thread that it does not have.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

from polarcredits.errors import DatabaseBusy


class Patient(Protocol):
    """Says how many seconds a turn is waited for."""

    patience: float


class Turn:
    """A thread's turn to write to a SQLite database. Entering it raises DatabaseBusy.

    SQLite has one writer at a time, and who waits for it sleeps: threads of one process would starve
    each other.

    A signal that raises leaves no turn behind: it is given back by the lock's own method, which is not
    interrupted, and which refuses a thread that has not got it.
    """

    __slots__ = ("__exit__", "_free", "_waiting")

    def __init__(self, waiting: Patient) -> None:
        self._waiting = waiting
        self._free = threading.RLock()
        self.__exit__: Any = self._free.__exit__  # a slot: `with` finds and calls the lock's own method

    def __enter__(self) -> None:
        """Wait for it."""
        try:
            mine = self._free.acquire(timeout=self._waiting.patience)
        except BaseException as error:
            try:
                self._free.release()
            except RuntimeError:
                raise error from None
            raise
        if not mine:
            raise DatabaseBusy("The database is locked by another writer; try again.")
