"""HTTP/1.1 as uvicorn speaks it over h11, with the limits that it lacks.

h11 rather than httptools: it refuses what is ambiguous and bounds heads, trailers and chunk headers;
what it costs is a tenth of a delivery. A connection that sends no whole head in time, or does
not read its answer, is closed, and there are only so many connections.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

HEAD_BYTES = 16 * 1024
HEAD_SECONDS = 10.0
READ_SECONDS = 15.0
"""How long a client may leave an answer unread."""
KEEP_ALIVE_SECONDS = 75
"""Longer than proxies keep idle connections (nginx 60 s), so that it is they who close them."""
MOST_CONNECTIONS = 4000


class BoundedProtocol(H11Protocol):
    """One connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a head, unless there are too many connections."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("HTTP needs a stream")
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take bytes; once a request has begun, reading it is the application's business."""
        super().data_received(data)
        self._watch()

    def pause_writing(self) -> None:
        """Wait for a client that does not read its answer, but not for ever."""
        super().pause_writing()
        self._unread = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: it reads."""
        super().resume_writing()
        self._forget_unread()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadlines."""
        super().connection_lost(exc)
        self._disarm()
        self._forget_unread()

    def _watch(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if not idle:
            self._disarm()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _forget_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
