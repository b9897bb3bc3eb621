"""`serve-webhooks`: everything that can be wrong is found before the first connection is taken."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_network

from polarcredits.errors import ConfigError
from polarcredits.ledger.opening import open_configured
from polarcredits.server.links import links_of
from polarcredits.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How to serve."""

    host: str
    port: int
    """0 takes any that is free."""
    workers: int
    allow_triggered: bool
    trusted_proxies: str | None
    """Addresses and networks whose X-Forwarded-For and -Proto count, separated by commas."""


def serve(settings: Settings, how: Serving, *, listening: Callable[[str], None]) -> int:
    """Serve until a signal and return the exit code; *listening* is told the address.

    Raises ConfigError for a setting that is missing or wrong, or an address that cannot be had;
    DatabaseError for a database that cannot be used.
    """
    _check(settings, how)
    open_configured(settings).close()
    bound = _bind(how.host, how.port)
    listening(_address(bound))
    folder = _metrics_folder(how.workers)
    try:
        return _run(settings, how, bound)
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _check(settings: Settings, how: Serving) -> None:
    if not settings.webhook_secrets:
        raise ConfigError(
            "POLAR_WEBHOOK_SECRET is not set: neither in the environment nor in a .env file. "
            "Run: polarcredits webhooks register URL",
            setting="POLAR_WEBHOOK_SECRET",
        )
    links_of(settings)
    if how.allow_triggered and settings.environment != "sandbox":
        raise ConfigError(
            "--allow-triggered takes made-up purchases: for that POLAR_ENVIRONMENT must be sandbox.",
            setting="POLAR_ENVIRONMENT",
        )
    _check_proxies(how.trusted_proxies)
    if how.workers > 1 and not hasattr(os, "fork"):
        raise ConfigError("Several workers need a system with fork; use --workers 1.", setting="--workers")


def _check_proxies(trusted: str | None) -> None:
    """Refuse what would be taken for the name of nobody, so that all visitors seemed to be the proxy."""
    for each in (trusted or "").split(","):
        try:
            if each.strip() not in ("", "*"):
                ip_network(each.strip())
        except ValueError as error:
            raise ConfigError(
                f"--trusted-proxies: {error}. Give addresses and networks such as 10.0.0.0/8, by commas.",
                setting="--trusted-proxies",
            ) from None


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.removeprefix("[").removesuffix("]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(2048)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "that is no name of a host"
        raise ConfigError(
            f"Cannot listen on {host}:{port}: {why}. Choose others with --host and --port.",
            setting="--port",
        ) from error
    bound.setblocking(False)
    return bound


def _address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _metrics_folder(workers: int) -> str | None:
    """Say where workers keep the figures that are added up, before prometheus-client is imported."""
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    if workers == 1:
        return None
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="polarcredits-metrics-")
    return os.environ["PROMETHEUS_MULTIPROC_DIR"]


def _run(settings: Settings, how: Serving, bound: socket.socket) -> int:
    """Run one worker here, or several; what they need is imported once, before they fork."""
    from prometheus_client.multiprocess import mark_process_dead

    from polarcredits.server.supervisor import Supervisor
    from polarcredits.server.worker import run_worker

    def work(parent: int | None = None) -> int:
        return run_worker(
            settings,
            bound,
            allow_triggered=how.allow_triggered,
            trusted_proxies=how.trusted_proxies,
            parent=parent,
        )

    if how.workers == 1:
        return work()
    return Supervisor(work, workers=how.workers, listening=bound, gone=mark_process_dead).run()
