"""The report of what became of events, which several commands give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from polarcredits.cli.output import emit, say, table
from polarcredits.errors import InvalidInput

if TYPE_CHECKING:
    from polarcredits.webhooks.inbox import Outcome


def report(outcomes: list[Outcome], *, single: bool) -> None:
    """Tell what became of events: exit 5 if the *single* one was refused, 9 if some failed."""
    counts = {
        "applied": sum(o.status == "applied" and not o.duplicate for o in outcomes),
        "duplicates": sum(o.duplicate for o in outcomes),
        "ignored": sum(o.status == "ignored" and not o.duplicate for o in outcomes),
        "failed": sum(o.status == "failed" and not o.duplicate for o in outcomes),
        "refused": sum(o.status == "refused" for o in outcomes),
    }
    if single and counts["refused"]:
        raise InvalidInput(outcomes[0].error or "The event was refused.")
    document: dict[str, Any] = {
        "events": [
            {
                "id": o.id,
                "type": o.type,
                "status": o.status,
                "duplicate": o.duplicate,
                "user": o.user,
                "error": o.error,
            }
            for o in outcomes
        ],
        **counts,
    }

    def people() -> None:
        bad = [o for o in outcomes if o.status in ("failed", "refused")]
        if bad:
            rows = [(o.status, o.type or "-", o.error or "-") for o in bad]
            table(("status", "type", "why"), rows, empty="")
        say(", ".join(f"{count} {name}" for name, count in counts.items()) + ".")

    emit(document, people)
    if counts["failed"] or counts["refused"]:
        raise typer.Exit(9)
