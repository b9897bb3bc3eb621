"""What Prometheus may know: counts and times of this process, and the state of the database.

With several workers, prometheus-client adds their figures up through files in a folder that
`PROMETHEUS_MULTIPROC_DIR` names, which must be set before prometheus-client is first imported.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector

from polarcredits.ledger.health import Work
from polarcredits.webhooks.payloads import KNOWN_TYPES

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def type_label(type: str | None) -> str:
    """Return an event's type if it is one that we know: anybody can make up others."""
    return type if type in KNOWN_TYPES else "other"


def keep_folder(folder: str) -> None:
    """Make the workers' folder again if something that cleans up has removed it: their figures start anew."""
    os.makedirs(folder, mode=0o700, exist_ok=True)


class Metrics:
    """The figures that this process counts itself."""

    def __init__(self) -> None:
        self._own = CollectorRegistry()
        self._folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if self._folder is not None:
            keep_folder(self._folder)
        self._dropped_before = 0
        self.deliveries = Counter(
            "polarcredits_deliveries",
            "Deliveries by type of event and outcome; what was refused has the type unverified.",
            ("type", "outcome"),
            registry=self._own,
        )
        self.seconds = Histogram(
            "polarcredits_request_seconds",
            "Time from a request's head to the end of its answer.",
            ("route",),
            buckets=_BUCKETS,
            registry=self._own,
        )
        self.requests = Counter(
            "polarcredits_requests",
            "Requests by route and status; 0 is a client that left.",
            ("route", "status"),
            registry=self._own,
        )
        self.retries = Counter(
            "polarcredits_event_retries",
            "Events that had failed and were applied again, by outcome.",
            ("outcome",),
            registry=self._own,
        )
        self.dropped = Counter(
            "polarcredits_log_lines_dropped",
            "Lines of the log for which there was no room because stderr was not read.",
            registry=self._own,
        )
        self._pool = Gauge(
            "polarcredits_database_connections",
            "Connections of the pools: idle, and in use.",
            ("state",),
            registry=self._own,
            multiprocess_mode="livesum",
        )

    def sample(self, connections: tuple[int, int], dropped: int) -> None:
        """Take over figures that others count: connections idle and in use, lines dropped so far."""
        for state, number in zip(("idle", "in_use"), connections, strict=True):
            self._pool.labels(state).set(number)
        self.dropped.inc(dropped - self._dropped_before)
        self._dropped_before = dropped

    def remove_folder(self) -> None:
        """Remove the workers' folder, when all of them end and nobody else is left to do it."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def text(self, work: Work | None, now: datetime) -> bytes:
        """Return everything in Prometheus's text format; *work* is None if there is no database."""
        registry = CollectorRegistry()
        if self._folder is not None:
            keep_folder(self._folder)
            MultiProcessCollector(registry, self._folder)
        registry.register(_State(work, now))
        own = b"" if self._folder is not None else generate_latest(self._own)
        return own + generate_latest(registry)


@dataclass(frozen=True)
class _State:
    """The database's figures, read once for a scrape."""

    work: Work | None
    now: datetime

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges; those of which nothing is known are left out."""
        yield _gauge("database_up", "Whether the database answered.", self.work is not None)
        found = self.work
        if found is None:
            return
        yield _gauge("failed_events", "Events that could not be applied.", found.failed_events)
        yield _gauge("dead_events", "Failed events that are no longer tried.", found.dead_events)
        yield _gauge(
            "inbox_age_seconds",
            "Age of the oldest event that waits to be tried again; 0 if there is none.",
            self._age(found.oldest_failed),
        )
        yield _gauge(
            "due_age_seconds",
            "How long the most overdue account has been waiting for refill; 0 if nothing is due.",
            self._age(found.oldest_due),
        )
        if found.last_refill is not None:
            last = found.last_refill.timestamp()
            yield _gauge("last_refill_timestamp_seconds", "When refill last ran to its end.", last)

    def _age(self, since: datetime | None) -> float:
        return 0.0 if since is None else max(0.0, (self.now - since).total_seconds())


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"polarcredits_{name}", text, value=float(value))
