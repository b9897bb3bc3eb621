"""A database that is away or locked: 503 meanwhile, nothing lost, healthy again without a restart."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from polarcredits.ledger import schema
from polarcredits.ledger.database import Database
from tests.postgres import Postgres, postgres_server
from tests.server.conftest import sqlite
from tests.server.serving import serving
from tests.server.test_deliveries import stored
from tests.server.wire import Sent, flood, post, told

EVENT = {"type": "x", "timestamp": "2026-01-01T00:00:00Z"}


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A PostgreSQL of the test's own, to stop and start; its database is migrated."""
    with postgres_server() as server:
        database = Database(server.get_uri())
        schema.upgrade(database)
        database.close()
        yield server


def test_postgresql_restarted_under_load(own_postgres: Postgres, tmp_path: Path) -> None:
    """While PostgreSQL is away deliveries get 503 and are sent again; readiness tells; then all is well."""
    url = own_postgres.get_uri()
    waiting = [
        told(f"evt-{number}", {"type": "x", "timestamp": "2026-01-01T00:00:00Z"}) for number in range(300)
    ]
    taken: dict[str, int] = {}

    def note(sent: Sent) -> None:
        if sent.answer is not None and sent.answer.status == 202:
            taken[sent.sending.id] = taken.get(sent.sending.id, 0) + 1

    with serving(tmp_path / "run", url, options=["--workers", "2"]) as server:
        asyncio.run(flood(server.port, waiting[:100], connections=16, seen=note))

        async def outage() -> list[Sent]:
            loading = asyncio.create_task(flood(server.port, waiting[100:200], connections=16, seen=note))
            await asyncio.to_thread(own_postgres.stop)
            await loading
            return await flood(server.port, waiting[200:], connections=16, seen=note)

        assert {each.answer and each.answer.status for each in asyncio.run(outage())} == {503}
        assert server.get("/readyz")[0] == 503
        assert server.get("/healthz")[0] == 200
        assert "polarcredits_database_up 0.0" in server.get("/metrics")[1]
        own_postgres.start()
        server.ready()
        assert set(taken) <= stored(url)
        again = [each for each in waiting if each.id not in taken]
        sent = asyncio.run(flood(server.port, again, connections=16, seen=note))
        assert {each.answer and each.answer.status for each in sent} == {202}
        assert "polarcredits_database_up 1.0" in server.get("/metrics")[1]
    assert len(taken) == 300
    assert stored(url) == set(taken)


@contextmanager
def never_storing(url: str) -> Iterator[None]:
    """Let each attempt to store a delivery take five seconds, and then lose a race."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$"
            " BEGIN PERFORM pg_sleep(5); RAISE SQLSTATE '40001'; END $$"
        )
        connection.execute(
            "CREATE TRIGGER dawdle BEFORE INSERT ON webhook_events FOR EACH ROW EXECUTE FUNCTION dawdle()"
        )
        yield
        connection.execute("DROP FUNCTION dawdle CASCADE")


def test_a_database_that_never_finishes_keeps_no_server(own_postgres: Postgres, tmp_path: Path) -> None:
    """A server that is told to stop while its database goes on and on ends by itself, and says so."""
    url = own_postgres.get_uri()
    with serving(tmp_path / "run", url) as server, never_storing(url):
        assert post(server.port, told("hanging", EVENT)).status == 503
        assert server.stop() == 1


def test_a_commit_that_hangs_is_told(own_postgres: Postgres, tmp_path: Path) -> None:
    """Not ready while a commit outlasts what deliveries wait, whatever others answer; then ready."""
    url = own_postgres.get_uri()
    with serving(tmp_path / "run", url) as server:
        assert post(server.port, told("before", EVENT)).status == 202
        with never_storing(url):
            assert server.get("/readyz")[0] == 200
            assert post(server.port, told("slow", EVENT)).status == 503
            until = time.monotonic() + 3
            while server.get("/readyz")[0] != 503:
                assert time.monotonic() < until
                time.sleep(0.1)
        server.ready()
        assert post(server.port, told("slow", EVENT)).json == {"status": "duplicate"}


def test_processes_of_postgresql_that_hang_are_given_up(own_postgres: Postgres, tmp_path: Path) -> None:
    """Backends that never answer again, though their server lives: 503, then 202 without a restart."""
    url = own_postgres.get_uri()
    with serving(tmp_path / "run", url) as server, psycopg.connect(url, autocommit=True) as connection:
        assert post(server.port, told("before", EVENT)).status == 202
        others = "SELECT pid FROM pg_stat_activity WHERE datname IS NOT NULL AND pid <> pg_backend_pid()"
        hanging = [pid for (pid,) in connection.execute(others)]
        assert hanging
        try:
            for pid in hanging:
                os.kill(pid, signal.SIGSTOP)
            assert post(server.port, told("hanging", EVENT)).status == 503
            server.ready()
            assert post(server.port, told("hanging", EVENT)).status == 202
        finally:
            for pid in hanging:
                os.kill(pid, signal.SIGCONT)
    assert stored(url) == {"before", "hanging"}


def test_a_database_that_takes_no_deliveries_is_told(tmp_path: Path) -> None:
    """Reading goes well, storing does not (its disk is full): not ready, until it does or may again."""
    url = sqlite(tmp_path)
    with serving(tmp_path / "run", url) as server, sqlite3.connect(url.removeprefix("sqlite:///")) as other:

        def fail(name: str) -> None:
            other.execute(
                "CREATE TRIGGER full BEFORE INSERT ON webhook_events BEGIN SELECT RAISE(ABORT, 'full'); END"
            )
            assert post(server.port, told(name, EVENT)).status == 503
            assert server.get("/readyz") == (503, '{"status":"not_ready","code":"database"}')
            assert server.get("/healthz")[0] == 200
            other.execute("DROP TRIGGER full")

        assert server.get("/readyz")[0] == 200
        fail("first")
        assert post(server.port, told("first", EVENT)).status == 202
        assert server.get("/readyz")[0] == 200
        fail("second")
        assert server.get("/readyz")[0] == 503
        server.ready()
    assert stored(url) == {"first"}


def test_sqlite_locked_by_another_writer(tmp_path: Path) -> None:
    """A lock that outlasts the busy timeout: 503 well within Polar's ten seconds, and nothing is stored."""
    url = sqlite(tmp_path)
    event = told("locked-out", {"type": "x", "timestamp": "2026-01-01T00:00:00Z"})
    with serving(tmp_path / "run", url) as server:
        other = sqlite3.connect(tmp_path / "credits.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        locked = post(server.port, event)
        assert time.monotonic() - began < 8
        assert (locked.status, locked.headers["retry-after"]) == (503, "5")
        assert server.get("/readyz")[0] == 200
        other.execute("ROLLBACK")
        other.close()
        assert stored(url) == set()
        assert post(server.port, event).json == {"status": "ignored"}
    assert stored(url) == {"locked-out"}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sqlite_restored_under_the_server(workers: str, tmp_path: Path) -> None:
    """A file that is gone takes no deliveries; one put in its place takes them at once, without a restart."""
    url = sqlite(tmp_path)
    backup = tmp_path / "backup.db"
    file = tmp_path / "credits.db"
    event = {"type": "x", "timestamp": "2026-01-01T00:00:00Z"}
    with serving(tmp_path / "run", url, options=["--workers", workers]) as server:
        assert post(server.port, told("before", event)).status == 202
        database = Database(url)
        schema.backup(database, backup)
        database.close()
        for number in range(8):
            assert post(server.port, told(f"lost-{number}", event)).status == 202
        for old in tmp_path.glob("credits.db*"):
            old.unlink()
        for number in range(8):
            assert post(server.port, told(f"gone-{number}", event)).status == 503
        assert server.get("/readyz")[0] == 503
        assert server.get("/healthz")[0] == 200
        assert not file.exists()
        os.replace(backup, file)
        server.ready()
        for number in range(8):
            assert post(server.port, told(f"after-{number}", event)).status == 202
    assert stored(url) == {"before", *(f"after-{number}" for number in range(8))}


def test_the_url_says_how_long_a_lock_is_waited_for(tmp_path: Path) -> None:
    """`?timeout=` in the URL goes before the server's own patience."""
    url = f"{sqlite(tmp_path)}?timeout=0.1"
    event = told("locked-out", {"type": "x", "timestamp": "2026-01-01T00:00:00Z"})
    with serving(tmp_path / "run", url) as server:
        other = sqlite3.connect(tmp_path / "credits.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        assert post(server.port, event).status == 503
        assert time.monotonic() - began < 2
        other.close()
