"""What those who ask a group are told: an answer each, or an error that is theirs alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from polarcredits.errors import DatabaseBusy, DatabaseError, PolarCreditsError

Q = TypeVar("Q")
A = TypeVar("A")
Work = Callable[[Sequence[Q]], Sequence[A | Exception]]


UNTOLD = BaseException("Nobody told the answer.")
"""The answer of whose batch was interrupted before it was told of the answer or of the failure."""


def answers_of(work: Work[Q, A], requests: Sequence[Q]) -> Sequence[A | Exception]:
    """Return the answers of *work*: exactly one a request."""
    answers = work(requests)
    if len(answers) != len(requests):
        raise ValueError(f"{len(requests)} requests have {len(answers)} answers")
    return answers


def twin(error: BaseException) -> Exception:
    """Return what one of several callers is told of the failure of their batch: its own object.

    What is none of our errors was raised by a signal handler, and concerns the thread that it interrupted.
    """
    if not isinstance(error, PolarCreditsError):
        told: Exception = DatabaseError("Interrupted before the commit was known; look before you repeat.")
    else:
        told = error.__class__.__new__(error.__class__, *error.args)
        told.__dict__.update(error.__dict__)
    told.__cause__ = error
    return told


def too_many() -> DatabaseBusy:
    """Return what a caller gets for whom there was no room in time."""
    return DatabaseBusy("Too many requests wait for the database; try again.")
