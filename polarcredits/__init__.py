"""polarcredits: an immutable credit ledger in step with Polar.

>>> from polarcredits import open_ledger
>>> ledger = open_ledger()
>>> ledger.deduct("alice", operation="render", idempotency_key="req-1")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polarcredits.errors import (
    AccountClosed,
    AlreadyReversed,
    ConfigError,
    DatabaseBusy,
    DatabaseError,
    HoldClosed,
    InsufficientCredits,
    InvalidInput,
    KeyReused,
    NotFound,
    PolarCreditsError,
    UnknownUser,
)

if TYPE_CHECKING:
    from polarcredits.ledger.async_ledger import AsyncLedger
    from polarcredits.ledger.ledger import Ledger

__version__ = "0.1.0"
__all__ = [
    "AccountClosed",
    "AlreadyReversed",
    "AsyncLedger",
    "ConfigError",
    "DatabaseBusy",
    "DatabaseError",
    "HoldClosed",
    "InsufficientCredits",
    "InvalidInput",
    "KeyReused",
    "Ledger",
    "NotFound",
    "PolarCreditsError",
    "UnknownUser",
    "open_ledger",
    "open_ledger_async",
]


def open_ledger(url: str | None = None) -> Ledger:
    """Open the ledger of *url*, else of the settings that the command line uses.

    A SQLite database that does not exist yet is made. Raises ConfigError or DatabaseError.
    """
    from polarcredits.ledger.opening import open_configured
    from polarcredits.settings import load_settings

    return open_configured(load_settings(database=url))


def open_ledger_async(url: str | None = None) -> AsyncLedger:
    """Open the same ledger for asyncio: `async with open_ledger_async() as ledger`. Raises as open_ledger."""
    from polarcredits.ledger.async_ledger import AsyncLedger

    return AsyncLedger(open_ledger(url))


def __getattr__(name: str) -> Any:
    if name == "Ledger":
        from polarcredits.ledger.ledger import Ledger

        return Ledger
    if name == "AsyncLedger":
        from polarcredits.ledger.async_ledger import AsyncLedger

        return AsyncLedger
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
