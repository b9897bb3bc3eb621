"""Bounds on what visitors can make the server do: how often, and how much at once."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from ipaddress import IPv6Address, IPv6Network, ip_address

from polarcredits.errors import PolarCreditsError

_MINUTE = timedelta(minutes=1)
_MOST_KEYS = 4096
FEW = 3
"""Who has asked so little in this minute is let in although others have used up what is for all."""
_KEPT_FREE = 3
"""How many times more than is for all, in case it is those who ask little."""


class TooMany(PolarCreditsError):
    """Somebody asks too often, or too many ask at once; nothing was done."""

    code = "too_many"


class Throttle:
    """At most so many a minute for each key, and for all together; forgets keys that it cannot hold.

    Some keys that ask for much cannot use up the places of those who ask for little.
    """

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
        together = self._together * (_KEPT_FREE if mine < FEW else 1)
        if mine >= self._each or self._all >= together:
            raise TooMany("Too many requests in this minute.")
        self._all += 1
        self._by_key[key] = mine + 1
        self._by_key.move_to_end(key)
        if len(self._by_key) > _MOST_KEYS:
            self._by_key.popitem(last=False)


def visitor(host: str | None) -> str:
    """Return whom an address counts for: of IPv6, where one visitor has very many, its network."""
    try:
        address = ip_address(host or "")
    except ValueError:
        return host or "nobody"
    return str(IPv6Network((address, 64), strict=False)) if isinstance(address, IPv6Address) else str(address)


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
