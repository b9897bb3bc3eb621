"""Failed events heal: those whose time has come are applied again (docs/rules.md §8.4)."""

from __future__ import annotations

import asyncio
import random

from polarcredits.errors import ConfigError, DatabaseError
from polarcredits.server.context import ServerContext
from polarcredits.server.log import JsonLog
from polarcredits.server.metrics import Metrics

PAUSE_SECONDS = 5.0
"""How often every worker looks, about; events that another is at are left to it."""


class Healing:
    """Applies failed events again, as long as the server runs."""

    def __init__(self, context: ServerContext, *, log: JsonLog, metrics: Metrics) -> None:
        self._context = context
        self._log = log
        self._metrics = metrics

    async def run(self, *, pause: float = PAUSE_SECONDS) -> None:
        """Look, and look again after a pause, until cancelled. A look begun is finished."""
        while True:
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))
            await self._look()

    async def _look(self) -> None:
        inbox = self._context.inbox
        try:
            outcomes = await self._context.with_database(lambda: inbox.retry_due(now=self._context.now()))
        except (DatabaseError, ConfigError) as error:
            self._log.write("retry_failed", level="error", code=error.code, message=error.message)
            return
        for outcome in outcomes:
            self._metrics.retries.labels(outcome.status).inc()
            self._log.write("retry", webhook_id=outcome.id, type=outcome.type, outcome=outcome.status)
