"""What the catalog's products cost at Polar: kept for a while, and asked for off the request's path."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta

from polarcredits.errors import PolarCreditsError
from polarcredits.polar_values import Product

FRESH = timedelta(minutes=5)
KEPT = timedelta(hours=1)
"""How long prices are shown that Polar could not confirm since."""
RETRY = timedelta(seconds=30)
_FIRST_WAIT = 1.5
"""Seconds that the first visitor waits for prices; everybody later sees what is known."""
_log = logging.getLogger("polarcredits.pages")

Products = Mapping[str, Product]


class Prices:
    """The products by id, as Polar last showed them; None where it did not."""

    def __init__(self, ask: Callable[[], Awaitable[Products]], clock: Callable[[], datetime]) -> None:
        self._ask = ask
        self._clock = clock
        self._products: Products | None = None
        self._learned: datetime | None = None
        self._asked: datetime | None = None
        self._asking: asyncio.Task[None] | None = None

    async def known(self) -> Products | None:
        """Return what is known now, and have it asked for again where it is old."""
        now = self._clock()
        age = None if self._learned is None else now - self._learned
        pause = FRESH if age is not None and self._asked == self._learned else RETRY
        if self._asking is None and (self._asked is None or now - self._asked >= pause):
            self._asked = now
            self._asking = asyncio.create_task(self._learn(now))
        if self._products is None and self._asking is not None:
            await asyncio.wait([self._asking], timeout=_FIRST_WAIT)
        return self._products if self._learned is not None and now - self._learned < KEPT else None

    async def _learn(self, now: datetime) -> None:
        try:
            self._products = await self._ask()
            self._learned = now
        except PolarCreditsError as error:
            _log.warning("No prices from Polar: %s", error.message)
        finally:
            self._asking = None
