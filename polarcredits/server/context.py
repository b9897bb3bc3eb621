"""What every route of the server may use: settings, ledger, inbox, the clock, and threads to wait in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from polarcredits.ledger.ledger import Ledger
from polarcredits.settings import Settings
from polarcredits.webhooks.inbox import Inbox

T = TypeVar("T")
_COMPUTING_THREADS = 1
_CHECK_THREADS = 2
_DATABASE_THREADS = 4
_POLAR_THREADS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerContext:
    """One worker's view of the world; all of it is safe to share between threads."""

    settings: Settings
    ledger: Ledger
    inbox: Inbox
    allow_triggered: bool
    """Take made-up events; never true in production."""
    clock: Callable[[], datetime]
    _threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_COMPUTING_THREADS), repr=False)
    _checks: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_CHECK_THREADS), repr=False)
    _database: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_DATABASE_THREADS), repr=False)
    _polar: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_POLAR_THREADS), repr=False)

    def now(self) -> datetime:
        """Return the time, aware UTC."""
        return self.clock()

    async def with_threads(self, work: Callable[[], T]) -> T:
        """Run what only computes, but for long, off the event loop."""
        return await to_thread.run_sync(work, limiter=self._threads)

    async def with_checks(self, work: Callable[[], T]) -> T:
        """Run a check of the database off the event loop, whatever else waits for it."""
        return await to_thread.run_sync(work, limiter=self._checks)

    async def with_database(self, work: Callable[[], T]) -> T:
        """Run what reads or writes the ledger off the event loop; its errors come through."""
        return await to_thread.run_sync(work, limiter=self._database)

    async def with_polar(self, work: Callable[[], T]) -> T:
        """Run what asks Polar off the event loop, in threads of its own: a slow Polar delays no delivery."""
        return await to_thread.run_sync(work, limiter=self._polar)
