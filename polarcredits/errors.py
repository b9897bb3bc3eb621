"""Everything that can be expected to fail, as classes with a code, an exit code and fields.

PolarCreditsError
├── NotFound                  3  not_found
│   └── UnknownUser
├── InsufficientCredits       4  insufficient_credits
├── InvalidInput              5  invalid_input
│   ├── KeyReused                key_reused
│   ├── AlreadyReversed          already_reversed
│   ├── HoldClosed               hold_closed
│   └── AccountClosed            account_closed
├── PolarUnavailable          6  polar_unavailable
├── PolarRefused              6  polar_refused
├── ConfigError               7  config
└── DatabaseError             8  database
    └── DatabaseBusy
"""

from __future__ import annotations

import shlex
from typing import ClassVar


class PolarCreditsError(Exception):
    """An expected failure: `code` is stable, `fields` are what a program may branch on."""

    code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, **fields: object) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields


class NotFound(PolarCreditsError):
    """No such user, transaction, hold, event or plan."""

    code = "not_found"
    exit_code = 3


class UnknownUser(NotFound):
    """No account has this user id."""

    def __init__(self, user: str) -> None:
        super().__init__(
            f"No user {user!r}. Add it with: polarcredits users add {shlex.quote(user)}", user=user
        )
        self.user = user


class InsufficientCredits(PolarCreditsError):
    """The available credits are fewer than the request needs; nothing moved."""

    code = "insufficient_credits"
    exit_code = 4

    def __init__(self, user: str, *, required: int, available: int) -> None:
        super().__init__(
            f"{user} needs {required} credits and has {available} available.",
            user=user,
            required=required,
            available=available,
        )
        self.user = user
        self.required = required
        self.available = available


class InvalidInput(PolarCreditsError):
    """A value, file, payload or signature that is refused."""

    code = "invalid_input"
    exit_code = 5


class KeyReused(InvalidInput):
    """The idempotency key was used before for another request."""

    code = "key_reused"

    def __init__(self, key: str) -> None:
        super().__init__(f"Idempotency key {key!r} was used for another request. Use a new key.", key=key)
        self.key = key


class AlreadyReversed(InvalidInput):
    """The deduction was given back before."""

    code = "already_reversed"

    def __init__(self, transaction: str) -> None:
        super().__init__(f"Transaction {transaction} is reversed already.", transaction=transaction)
        self.transaction = transaction


class HoldClosed(InvalidInput):
    """The hold was captured, released or has lapsed."""

    code = "hold_closed"

    def __init__(self, hold: str, status: str) -> None:
        super().__init__(f"Hold {hold} is {status}; place a new one.", hold=hold, status=status)
        self.hold = hold
        self.status = status


class AccountClosed(InvalidInput):
    """The user's Polar customer was deleted."""

    code = "account_closed"

    def __init__(self, user: str) -> None:
        super().__init__(f"The account of {user} is closed: its Polar customer was deleted.", user=user)
        self.user = user


class PolarUnavailable(PolarCreditsError):
    """Polar could not be reached, or asked to try later."""

    code = "polar_unavailable"
    exit_code = 6


class PolarRefused(PolarCreditsError):
    """Polar refused the request."""

    code = "polar_refused"
    exit_code = 6


class ConfigError(PolarCreditsError):
    """A setting is missing or wrong."""

    code = "config"
    exit_code = 7


class DatabaseError(PolarCreditsError):
    """The database cannot be opened, is locked, or is not migrated."""

    code = "database"
    exit_code = 8


class DatabaseBusy(DatabaseError):
    """Another writer holds the database."""
