"""What a visitor is told when something cannot be done: the status, a heading, and what to do next.

The words of our errors are for whoever runs the server; they may name other people, so visitors never
see them.
"""

from __future__ import annotations

from dataclasses import dataclass

from polarcredits.errors import (
    ConfigError,
    DatabaseError,
    InvalidInput,
    NotFound,
    PolarCreditsError,
    PolarRefused,
    PolarUnavailable,
)
from polarcredits.server.limits import TooMany
from polarcredits.server.links import LinkExpired, LinkRefused


class Foreign(InvalidInput):
    """A form that was sent from another site."""


class PageOff(NotFound):
    """A page that shows a user's data, while there is no key to sign links with."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that refuses."""

    status: int
    title: str
    text: str
    retry_after: int | None = None


_REFUSALS: tuple[tuple[type[PolarCreditsError], Refusal], ...] = (
    (
        LinkExpired,
        Refusal(
            410, "This link has expired", "Nothing is wrong with your account. Please ask for a new link."
        ),
    ),
    (
        LinkRefused,
        Refusal(
            403, "This link is not valid", "It may have been cut off on its way. Please ask for a new link."
        ),
    ),
    (Foreign, Refusal(403, "This form came from another site", "Please open our page and try again there.")),
    (
        PageOff,
        Refusal(
            404,
            "This page is switched off",
            "If you have just paid, there is nothing that you need to do: your credits arrive by themselves.",
        ),
    ),
    (TooMany, Refusal(429, "Too many requests", "Please wait a minute, and try again.", 60)),
    (NotFound, Refusal(404, "There is nothing here", "Please check the link, or ask for a new one.")),
    (
        InvalidInput,
        Refusal(
            422,
            "That cannot be done",
            "Please check what you entered, or ask us for help. Nothing was charged.",
        ),
    ),
    (
        ConfigError,
        Refusal(503, "This is not on sale at present", "Please try again later. Nothing was charged.", 300),
    ),
    (
        PolarUnavailable,
        Refusal(
            503,
            "The payment service does not answer",
            "Please try again in a minute. Nothing was charged.",
            30,
        ),
    ),
    (
        PolarRefused,
        Refusal(502, "The payment service declined", "Please try again later, or ask us for help.", None),
    ),
    (
        DatabaseError,
        Refusal(503, "Please come back in a moment", "Your credits are safe. Please try again.", 10),
    ),
    (PolarCreditsError, Refusal(500, "Something went wrong", "We have been told. Please try again later.")),
)


def refusal_of(error: PolarCreditsError) -> Refusal:
    """Return what to tell about an error; the first kind that fits counts."""
    return next(refusal for kind, refusal in _REFUSALS if isinstance(error, kind))
