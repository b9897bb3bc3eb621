"""Bounds on what visitors can make the server do: how often, and how much at once."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

from polarcredits.errors import PolarCreditsError

_MINUTE = timedelta(minutes=1)
_MOST_KEYS = 4096


class TooMany(PolarCreditsError):
    """Somebody asks too often, or too many ask at once; nothing was done."""

    code = "too_many"


class Throttle:
    """At most so many a minute for each key, and for all together; forgets keys that it cannot hold."""

    def __init__(self, *, each: int, together: int, clock: Callable[[], datetime]) -> None:
        self._each = each
        self._together = together
        self._clock = clock
        self._since = clock()
        self._all = 0
        self._by_key: OrderedDict[str, int] = OrderedDict()

    def take(self, key: str) -> None:
        """Count one more for *key*. Raises TooMany."""
        now = self._clock()
        if not timedelta(0) <= now - self._since < _MINUTE:
            self._since, self._all = now, 0
            self._by_key.clear()
        mine = self._by_key.get(key, 0)
        if mine >= self._each or self._all >= self._together:
            raise TooMany("Too many requests in this minute.")
        self._all += 1
        self._by_key[key] = mine + 1
        self._by_key.move_to_end(key)
        if len(self._by_key) > _MOST_KEYS:
            self._by_key.popitem(last=False)


class Gate:
    """Lets so many through at once, and so many more wait."""

    def __init__(self, *, inside: int, waiting: int) -> None:
        self._free = asyncio.Semaphore(inside)
        self._most = inside + waiting
        self._here = 0

    @asynccontextmanager
    async def passing(self) -> AsyncIterator[None]:
        """Wait for a place. Raises TooMany where too many wait already."""
        if self._here >= self._most:
            raise TooMany("Too many requests at once.")
        self._here += 1
        try:
            async with self._free:
                yield
        finally:
            self._here -= 1
