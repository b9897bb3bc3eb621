"""kill -9 at random moments: nothing acknowledged is lost, nothing is done twice, the laws hold.

python -m tests.ledger.killing 500 runs so many rounds of deducting, ingesting, refilling and migrating,
on SQLite and on PostgreSQL (docs/rules.md §6.4).
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from polarcredits.ledger import schema
from polarcredits.ledger.database import Database
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.verify import verify
from polarcredits.ledger.views import list_users
from polarcredits.refill import refill
from polarcredits.webhooks.inbox import Inbox
from tests.ledger.test_convergence import catalog as recorded_catalog
from tests.ledger.test_convergence import outcome
from tests.ledger.worlds import at, catalog, dump
from tests.postgres import running_postgres
from tests.webhooks.recordings import FILES, SECRET, recorded

Tell = Callable[[str], None]
_NUMBERS = itertools.count()
_FORK = multiprocessing.get_context("fork")
_THREADS = 8
_PATIENCE_SECONDS = 60
_LATER = datetime(2026, 12, 1, tzinfo=UTC)
"""After all recorded deliveries."""


class Trial(ABC):
    """A kind of work: what it starts from, how it is done, and what must hold wherever it was cut off."""

    seconds = 0.1
    """When it is killed at the latest, once it has begun."""

    @abstractmethod
    def prepare(self, url: str) -> None:
        """Fill an empty, migrated database."""

    @abstractmethod
    def work(self, url: str, tell: Tell) -> None:
        """Begin, and tell of each thing that was acknowledged, first of the beginning."""

    @abstractmethod
    def check(self, url: str, told: list[str]) -> None:
        """Assert that all that was told of is there, and that the work can be finished."""


class Deducting(Trial):
    """Threads that spend, each deduction with its key."""

    def prepare(self, url: str) -> None:
        with Ledger(url, catalog()) as ledger:
            ledger.grant("ann", 10**9, create=True)

    def work(self, url: str, tell: Tell) -> None:
        ledger = Ledger(url, catalog())

        def spend(caller: int) -> None:
            for turn in itertools.count():
                key = f"{caller}-{turn}"
                spent = ledger.deduct("ann", 1, idempotency_key=key)
                tell(f"{key} {spent.transaction.id}")

        for caller in range(_THREADS):
            threading.Thread(target=spend, args=(caller,), daemon=True).start()
        threading.Event().wait()

    def check(self, url: str, told: list[str]) -> None:
        with Ledger(url, catalog()) as ledger:
            spent = entries(ledger) - 2
            assert ledger.balance("ann").balance == 10**9 + 1000 - spent
            for key, id in (each.split() for each in told):
                again = ledger.deduct("ann", 1, idempotency_key=key)
                assert (again.replayed, again.transaction.id) == (True, id)
            assert len(told) <= spent <= len(told) + _THREADS
            assert entries(ledger) == spent + 2
            assert verify(ledger).problems == []


class Ingesting(Trial):
    """Recorded deliveries, a few in a transaction."""

    seconds = 0.4

    def __init__(self) -> None:
        self._deliveries = [each for file in FILES for each in recorded(file)]
        self._expected: dict[str, Any] = {}

    def prepare(self, url: str) -> None:
        with tempfile.TemporaryDirectory() as folder, opened(f"sqlite:///{folder}/credits.db") as ledger:
            self._take(ledger, lambda _: None)
            self._expected = self._outcomes(ledger)

    def work(self, url: str, tell: Tell) -> None:
        with opened(url) as ledger:
            self._take(ledger, tell)

    def check(self, url: str, told: list[str]) -> None:
        with opened(url) as ledger:
            inbox = Inbox(ledger, environment="sandbox", secrets=[SECRET])
            assert verify(ledger).problems == []
            assert set(told) <= {row.id for row in inbox.list(limit=None)}
            self._take(ledger, lambda _: None)
            assert inbox.count() == len(self._deliveries)
            assert self._outcomes(ledger) == self._expected
            assert verify(ledger).problems == []

    def _take(self, ledger: Ledger, tell: Tell) -> None:
        inbox = Inbox(ledger, environment="sandbox", secrets=[SECRET])
        left = list(self._deliveries)
        while left:
            few = [left.pop(0) for _ in range(min(len(left), random.randint(1, 9)))]
            inbox.ingest_many(few, now=_LATER)
            for each in few:
                tell(each.headers["webhook-id"])

    def _outcomes(self, ledger: Ledger) -> dict[str, Any]:
        users = list_users(ledger, plan=None, limit=10_000)
        return {each.id: outcome(ledger, each.id, _LATER) for each in users}


class Refilling(Trial):
    """Many grants that have expired, a few users in a transaction."""

    users = 60

    def prepare(self, url: str) -> None:
        with Ledger(url, catalog()) as ledger:
            for number in range(self.users):
                ledger.grant(f"user-{number}", 7, expires_at=at("04-02"), create=True, at=at("04-01"))

    def work(self, url: str, tell: Tell) -> None:
        with Ledger(url, catalog()) as ledger:
            tell("begun")
            refill(ledger, at=at("05-01"), batch=4)

    def check(self, url: str, told: list[str]) -> None:
        with Ledger(url, catalog()) as ledger:
            assert verify(ledger).problems == []
            refill(ledger, at=at("05-01"))
            assert entries(ledger) == 3 * self.users
            assert {ledger.balance(f"user-{number}").balance for number in range(self.users)} == {1000}
            assert verify(ledger).problems == []


class Migrating(Trial):
    """A database of the first version with entries, brought to the newest."""

    def __init__(self) -> None:
        self._expected: dict[str, Any] = {}

    def prepare(self, url: str) -> None:
        Refilling().prepare(url)
        with Ledger(url, catalog()) as ledger:
            ledger.deduct("user-1", 3, idempotency_key="once", at=at("04-01 12:00"))
            self._expected = dump(ledger)
            config = Config()
            config.set_main_option("script_location", str(schema.migrations_directory()))
            with ledger.database.writer.begin() as connection:
                config.attributes["connection"] = connection
                command.downgrade(config, "0001")

    def work(self, url: str, tell: Tell) -> None:
        database = Database(url)
        tell("begun")
        schema.upgrade(database)

    def check(self, url: str, told: list[str]) -> None:
        database = Database(url)
        schema.upgrade(database)
        database.close()
        with Ledger(url, catalog()) as ledger:
            assert dump(ledger) == self._expected
            assert verify(ledger).problems == []
            assert ledger.deduct("user-1", 3, idempotency_key="once", at=at("04-01 12:00")).replayed


TRIALS: tuple[type[Trial], ...] = (Deducting, Ingesting, Refilling, Migrating)


class Place:
    """A database prepared for a trial, and a copy of it for each round."""

    def __init__(self, server: str | None, folder: Path, trial: Trial) -> None:
        self._server = server
        self._folder = folder
        self._template = f"prepared_{next(_NUMBERS)}"
        if server is None:
            url = f"sqlite:///{folder / self._template}"
            schema.make_if_absent(url)
        else:
            url = self._made("")
            database = Database(url)
            schema.upgrade(database)
            database.close()
        trial.prepare(url)

    def copy(self) -> str:
        """Return the URL of a new copy."""
        if self._server is not None:
            return self._made(f" TEMPLATE {self._template}")
        path = self._folder / "credits.db"
        for leftover in self._folder.glob("credits.db*"):
            leftover.unlink()
        shutil.copy(self._folder / self._template, path)
        return f"sqlite:///{path}"

    def _made(self, template: str) -> str:
        name = f"round_{next(_NUMBERS)}" if template else self._template
        assert self._server is not None
        at = make_url(self._server).set(drivername="postgresql+psycopg")
        engine = create_engine(at, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}{template}"))
        engine.dispose()
        return make_url(self._server).set(database=name).render_as_string(hide_password=False)


def kill_once(trial: Trial, url: str, luck: random.Random) -> int:
    """Work in a process that is killed at a random moment, check, and return of how much it had told."""
    reading, writing = os.pipe()

    def tell(what: str) -> None:
        os.write(writing, f"{what}\n".encode())

    process = _FORK.Process(target=trial.work, args=(url, tell), daemon=True)
    process.start()
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = [pipe.readline()]
        time.sleep(luck.uniform(0, trial.seconds))
        os.kill(process.pid or 0, signal.SIGKILL)
        told += pipe.readlines()
    process.join()
    server_at_rest(url)
    assert told[0], "it ended before it had begun"
    whole = [line.strip() for line in told if line.endswith("\n") and line != "begun\n"]
    trial.check(url, whole)
    return len(whole)


def server_at_rest(url: str) -> None:
    """Return when a server has ended the sessions of a client that is gone: till then it may commit."""
    if url.startswith("sqlite"):
        return
    others = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with psycopg.connect(url, autocommit=True) as connection:
        until = time.monotonic() + _PATIENCE_SECONDS
        while connection.execute(others).fetchone() != (0,):
            assert time.monotonic() < until, "the server still works for a client that is dead"
            time.sleep(0.001)


def entries(ledger: Ledger) -> int:
    """Count the entries of the ledger."""
    with ledger.database.engine.connect() as connection:
        found = connection.execute(text("SELECT count(*) FROM credit_transactions"))
        return int(found.scalar_one())


def opened(url: str) -> Ledger:
    """Open a ledger that knows the recorded products."""
    return Ledger(url, recorded_catalog())


def main(arguments: list[str]) -> int:
    """Run every trial, and tell; the first failure ends it."""
    rounds = int(arguments[0]) if arguments else 500
    luck = random.Random()
    with tempfile.TemporaryDirectory() as folder, running_postgres() as server:
        for kind, (name, where) in itertools.product(TRIALS, {"SQLite": None, "PostgreSQL": server}.items()):
            trial = kind()
            place = Place(where, Path(folder), trial)
            told = sum(kill_once(trial, place.copy(), luck) for _ in range(rounds))
            print(f"{kind.__name__} on {name}: {rounds} kills, {told} acknowledged, none lost", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
