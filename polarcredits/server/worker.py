"""One worker: an event loop that answers what comes to the listening socket, until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import FrameType

from uvicorn import Config, Server

from polarcredits.ledger.database import Database
from polarcredits.ledger.ledger import Ledger
from polarcredits.server.app import make_app
from polarcredits.server.context import ServerContext
from polarcredits.server.links import what_is_off
from polarcredits.server.log import JsonLog, catch_library_logs
from polarcredits.server.metrics import Metrics
from polarcredits.server.protocol import HEAD_BYTES, KEEP_ALIVE_SECONDS, MOST_CONNECTIONS, BoundedProtocol
from polarcredits.server.supervisor import stopping_signals
from polarcredits.settings import Settings
from polarcredits.webhooks.inbox import Inbox

GRACE_SECONDS = 10
"""How long what is in flight may take once a worker is told to stop."""
STOP_SECONDS = 14.0
"""When a worker that was told to stop ends come what may: what it has not answered is not acknowledged."""
BUSY_SECONDS = 3.0
"""How long a lock of the database is waited for: twice that is still well within Polar's 10 s."""
_COLLECTED_AFTER = (10_000, 10, 10)
"""How many new objects Python's garbage collector waits for: a short command's own limits let a process
that lives for long grow by hundreds of megabytes."""


class _Server(Server):
    """uvicorn's server; a signal stops it, and the process then ends in its own way."""

    stopped_by: int | None = None
    orphaned = False

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Listen to SIGTERM, SIGINT and SIGHUP; a second SIGINT waits for nothing."""
        before = {each: signal.signal(each, self.handle_exit) for each in stopping_signals()}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note the signal and begin to stop."""
        self.stopped_by = self.stopped_by or sig
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop; a thread that waits for a database that hangs does not keep the process for ever."""
        last = threading.Timer(STOP_SECONDS, os._exit, [1])
        last.daemon = True
        last.start()
        await super().shutdown(sockets)


def run_worker(
    settings: Settings,
    listening: socket.socket,
    *,
    allow_triggered: bool,
    trusted_proxies: str | None,
    parent: int | None = None,
) -> int:
    """Serve until a signal; return the exit code: 130 after SIGINT, else 0.

    The database need not be there yet: until it is, deliveries get 503. *parent* is the end of a pipe
    that is closed when the parent process is gone; then the worker stops, and tidies up after both.
    """
    _allow_many_files()
    gc.freeze()
    gc.set_threshold(*_COLLECTED_AFTER)
    log = JsonLog()
    catch_library_logs(log)
    database = Database(settings.database_url, busy_seconds=BUSY_SECONDS)
    ledger = Ledger(settings.database_url, settings.catalog, actor="server", database=database)
    secrets = [secret.reveal() for secret in settings.webhook_secrets]
    context = ServerContext(
        settings=settings,
        ledger=ledger,
        inbox=Inbox(ledger, environment=settings.environment, secrets=secrets),
        allow_triggered=allow_triggered,
        clock=lambda: datetime.now(UTC),
    )
    metrics = Metrics()
    server = _Server(
        Config(
            make_app(context, log=log, metrics=metrics),
            http=BoundedProtocol,
            ws="none",
            lifespan="on",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=True,
            forwarded_allow_ips=trusted_proxies,
            h11_max_incomplete_event_size=HEAD_BYTES,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
            backlog=2048,
        )
    )
    log.write("worker_started")
    for each in what_is_off(settings):
        log.write("switched_off", message=each)
    try:
        asyncio.run(_serve(server, listening, parent))
    finally:
        log.write("worker_stopped", signal=server.stopped_by)
        ledger.close()
        log.close()
        if server.orphaned:
            metrics.remove_folder()
    return 130 if server.stopped_by == signal.SIGINT else 0


async def _serve(server: _Server, listening: socket.socket, parent: int | None) -> None:
    if parent is not None:
        asyncio.get_running_loop().add_reader(parent, _orphaned, server, parent)
    await server.serve([listening])


def _orphaned(server: _Server, parent: int) -> None:
    asyncio.get_running_loop().remove_reader(parent)
    server.orphaned = True
    server.handle_exit(signal.SIGTERM, None)


def _allow_many_files() -> None:
    """Raise this process's limit of open files as far as that many connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + 200
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
