"""The SQL of docs/scaling.md that archives old entries, run on a real PostgreSQL."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from polarcredits.cli import main
from polarcredits.errors import AlreadyReversed, DatabaseError, InvalidInput, NotFound
from polarcredits.ledger.explain import explain
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.verify import verify
from polarcredits.ledger.views import history, statement
from polarcredits.refill import refill
from polarcredits.webhooks.fixtures import Story
from polarcredits.webhooks.inbox import Inbox
from tests.ledger.archives import DOCUMENT, archive, compare, copy_of, count, opened_at
from tests.ledger.conftest import copy_of_template
from tests.ledger.worlds import at, catalog, feed, lots
from tests.webhooks.recordings import FILES, SECRET, recorded

RECORDED = """
[plans.recorded]
credits = 4000
interval = "month"
product_ids = [
    "e5e52250-8ea2-4e30-b1ae-60bd1c83e7b6", "5120c1de-db05-43d2-82e8-f0362be0a1bb",
    "958a9d62-7a10-43c4-8cb4-ca70ac56e799",
]
[packs.recorded]
credits = 1000
product_ids = ["614510d7-64a2-4342-9d93-7fd38e9b2062"]
"""
CATALOG = catalog(rest=RECORDED)
NOW = at("06-10")


@pytest.fixture
def url(postgres: str) -> str:
    """The URL of an empty PostgreSQL."""
    return copy_of_template(postgres)


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    """A ledger on it."""
    with Ledger(url, CATALOG, actor="test") as opened:
        yield opened


def live(ledger: Ledger) -> dict[str, Story]:
    """Let recorded and told users buy, spend, hold, get money back and be merged, until June."""
    inbox = Inbox(ledger, environment="sandbox", secrets=[SECRET])
    inbox.ingest_many([each for file in FILES for each in recorded(file)], now=at("01-01"))
    told = {name: Story(name, at=at("04-01")) for name in ("ann", "ben", "eve")} | {
        "dan": Story(None, at=at("04-01"))
    }
    for name, story in told.items():
        feed(ledger, story.purchase("pro"))
        user = name if name != "dan" else f"polar:{story.customer['id']}"
        spent = [ledger.deduct(user, 10 + n, at=at("04-02")) for n in range(4)]
        ledger.reverse(spent[2].transaction.id, at=at("04-03"))
        hold = ledger.hold(user, 60, ttl=timedelta(hours=2), at=at("04-04"))
        ledger.holds.capture(hold.id, 45, at=at("04-04"))
        ledger.grant(user, 70, expires_in=timedelta(days=2), at=at("04-05"))
        ledger.deduct(user, 30, at=at("04-06"))
    ledger.add_user("dan")
    ledger.link(user, "dan")
    feed(ledger, told["ann"].refund(500, at("04-10")))
    feed(ledger, told["ben"].plan_change("max", at("04-11")))
    for name in ("ann", "ben"):
        for month in ("05-01", "06-01"):
            feed(ledger, told[name].renewal(at(month)))
            ledger.deduct(name, 700, at=at(month) + timedelta(days=1))
    refill(ledger, at=at("06-03"))
    ledger.deduct("ann", 3, at=at("06-04"))
    return told


def test_whatever_is_asked_afterwards_is_answered_as_if_all_were_there(url: str, postgres: str) -> None:
    """Balances, statements, stories, the end of the history; then refunds, purchases and refills."""
    with Ledger(url, CATALOG) as ledger:
        told = live(ledger)
    whole_url = copy_of(postgres, url)
    with Ledger(url, CATALOG) as archived, Ledger(whole_url, CATALOG) as whole:
        archive(url, at("04-20"), step=3)
        compare(archived, whole, NOW)
        gone = count(archived, "credit_transactions_archive")
        assert gone > 40
        first = told["ann"].orders[0]["id"]
        later = [
            told["ann"].refund(1500, NOW, order_id=first),
            told["ben"].refund(None, NOW),
            told["eve"].pack("pack", NOW),
            told["ann"].renewal(at("07-01")),
        ]
        for events in later:
            for each in (archived, whole):
                feed(each, events)
            compare(archived, whole, NOW + timedelta(days=1))
        archive(url, at("06-20"))
        for each in (archived, whole):
            assert refill(each, at=at("07-02")).failed == []
            refill(each, at=at("08-02"))
        compare(archived, whole, at("08-03"))
        assert count(archived, "credit_transactions_archive") > gone
        archive(url, at("06-20"))
        for table in ("credit_transactions", "grant_draws"):
            assert count(archived, table) + count(archived, f"{table}_archive") == count(whole, table)


def test_a_refund_of_an_order_whose_entries_are_archived(url: str, ledger: Ledger) -> None:
    """§4.8: 25 % of what was paid for goes, what was spent stays owed, and no grant is given again."""
    life = Story("ann", at=at("04-01"))
    bought = life.purchase("pro") + life.pack("pack", at("04-02"), amount=1000)
    feed(ledger, bought)
    ledger.deduct("ann", 5600, at=at("04-03"))
    feed(ledger, life.renewal(at("05-01")))
    ledger.deduct("ann", 100, at=at("05-02"))
    archive(url, at("05-02"))
    assert [entry.type for entry in history(ledger, "ann")] == ["deduct"]
    feed(ledger, life.refund(250, at("05-05"), order_id=life.orders[1]["id"]))
    assert lots(ledger, "ann", at("05-06")) == [
        ("allowance", 5000, 100, 4900),
        ("lifetime", 1000, 600, 400),
        ("pack", 750, 0, 750),
    ]
    feed(ledger, bought)
    refill(ledger, at=at("05-06"))
    assert [entry.type for entry in history(ledger, "ann")] == ["clawback", "deduct"]
    [pack] = [each for each in explain(ledger, "ann", at("05-06")).grants if each.lot.source == "pack"]
    assert (pack.granted, pack.clawed_back) == (1000, 250)
    assert (pack.movements[0].type, pack.movements[0].cause) == ("grant", "archived")


def test_an_archived_deduction_is_not_reversed(url: str, ledger: Ledger) -> None:
    """The refusal says why; what stayed is reversed, and what never was is not known."""
    feed(ledger, Story("ann", at=at("04-01")).purchase("pro"))
    old = ledger.deduct("ann", 5, at=at("04-02"))
    refill(ledger, at=at("05-02"))
    new = ledger.deduct("ann", 6, at=at("05-03"))
    archive(url, at("05-01"))
    with pytest.raises(NotFound, match="archived") as refused:
        ledger.reverse(old.transaction.id)
    assert refused.value.fields == {"transaction": old.transaction.id}
    for unknown in ("txn_1_99", "txn_1_0", "txn_9_1"):
        with pytest.raises(NotFound, match="No transaction"):
            ledger.reverse(unknown)
    ledger.reverse(new.transaction.id)
    with pytest.raises(AlreadyReversed):
        ledger.reverse(new.transaction.id)
    assert verify(ledger).problems == []


def test_the_past_before_the_archive_is_not_told(url: str, ledger: Ledger) -> None:
    """From the last archived entry on it is."""
    feed(ledger, Story("ann", at=at("04-01")).purchase("pro"))
    ledger.deduct("ann", 5, at=at("04-02"))
    ledger.grant("ann", 20, at=at("04-03"))
    ledger.deduct("ann", 7, at=at("04-05"))
    archive(url, at("04-04"))
    assert opened_at(ledger, "ann") == at("04-03")
    for ask in (statement, explain):
        with pytest.raises(InvalidInput, match="2027-04-03T00:00:00Z are archived"):
            ask(ledger, "ann", at("04-03") - timedelta(seconds=1))
    assert statement(ledger, "ann", at("04-03")).balance.balance == 6015
    assert statement(ledger, "ann", at("04-05")).balance.balance == 6008


def test_a_key_is_known_as_long_as_its_entry_stays(url: str, ledger: Ledger) -> None:
    """What was archived is forgotten: archive only what nobody tries again."""
    ledger.grant("ann", 50, create=True, idempotency_key="gift", at=at("04-01"))
    ledger.deduct("ann", 5, idempotency_key="old", at=at("04-01"))
    ledger.grant("ann", 60, at=at("04-02"))
    ledger.deduct("ann", 5, idempotency_key="new", at=at("04-03"))
    archive(url, at("04-02"))
    assert ledger.deduct("ann", 5, idempotency_key="new").replayed
    assert not ledger.deduct("ann", 5, idempotency_key="old").replayed
    assert not ledger.grant("ann", 50, idempotency_key="gift").replayed
    assert verify(ledger).problems == []


def sequences(ledger: Ledger, user: str) -> list[int]:
    """Return which of a user's entries are there, oldest first."""
    return [int(entry.id.rsplit("_", 1)[1]) for entry in reversed(history(ledger, user, limit=None))]


def test_what_is_not_settled_stays(url: str, ledger: Ledger) -> None:
    """Which grants paid it is not written yet; and a deduction is not cut off from its neighbours."""
    ledger.grant("ann", 50, create=True, at=at("04-01"))
    for hour in range(3):
        ledger.deduct("ann", 5, at=at("04-02") + timedelta(hours=hour))
    archive(url, at("05-01"))
    assert sequences(ledger, "ann") == [3, 4, 5]
    ledger.grant("ann", 50, at=at("04-03"))
    archive(url, at("04-02") + timedelta(hours=1))
    assert sequences(ledger, "ann") == [3, 4, 5, 6]
    archive(url, at("05-01"))
    assert sequences(ledger, "ann") == [6]


def test_the_newest_entry_stays(url: str, ledger: Ledger) -> None:
    """Also of who did nothing for years; running it again archives nothing more."""
    ledger.grant("ann", 50, create=True, at=at("04-01"))
    for _ in range(2):
        archive(url, at("12-31"))
        assert sequences(ledger, "ann") == [2]
        assert count(ledger, "openings") == 1
        assert verify(ledger).problems == []


def test_a_deduction_and_its_reversal_stay_together(url: str, ledger: Ledger) -> None:
    """The cut goes before the deduction until it can go behind the reversal."""
    ledger.grant("ann", 50, create=True, at=at("04-01"))
    spent = ledger.deduct("ann", 5, at=at("04-02"))
    ledger.grant("ann", 50, at=at("04-03"))
    ledger.reverse(spent.transaction.id, at=at("04-10"))
    ledger.deduct("ann", 1, at=at("04-11"))
    archive(url, at("04-05"))
    assert sequences(ledger, "ann") == [3, 4, 5, 6]
    with pytest.raises(AlreadyReversed):
        ledger.reverse(spent.transaction.id)
    archive(url, at("04-11"))
    assert sequences(ledger, "ann") == [6]
    assert verify(ledger).problems == []


def test_what_was_recorded_late_counts_as_new(url: str, ledger: Ledger) -> None:
    """An entry of long ago that was written today may be tried again today."""
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    ledger.grant("ann", 50, create=True, at=long_ago)
    ledger.grant("ann", 60, at=long_ago)
    archive(url, datetime(2021, 1, 1, tzinfo=UTC))
    assert sequences(ledger, "ann") == [1, 2, 3]


@pytest.mark.parametrize("step", [1, 100])
def test_accounts_that_were_merged(step: int, url: str, ledger: Ledger) -> None:
    """A deduction of the one that was reversed on the other goes with its reversal, and not before."""
    life = Story(None, at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    placeholder = f"polar:{life.customer['id']}"
    spent = [ledger.deduct(placeholder, 70 + n, at=at("04-02")) for n in range(2)]
    ledger.grant("ann", 5, create=True, at=at("04-02"))
    ledger.link(placeholder, "ann")
    ledger.reverse(spent[0].transaction.id, at=at("04-05"))
    ledger.deduct("ann", 1, at=at("04-06"))
    stories = [(each.lot.key, each.lot.remaining) for each in explain(ledger, "ann", NOW).grants]
    archive(url, at("04-04"), step)
    with pytest.raises(AlreadyReversed):
        ledger.reverse(spent[0].transaction.id)
    assert verify(ledger).problems == []
    archive(url, at("04-06"), step)
    assert [entry.type for entry in history(ledger, "ann") if entry.user == "ann"] == ["deduct"]
    for receipt in spent:
        with pytest.raises(NotFound, match="archived"):
            ledger.reverse(receipt.transaction.id)
    assert verify(ledger).problems == []
    assert [(each.lot.key, each.lot.remaining) for each in explain(ledger, "ann", NOW).grants] == stories


def test_a_reversal_waits_for_its_deduction(url: str, ledger: Ledger) -> None:
    """Of an account that was merged one stays, because of another: so does what gave it back."""
    life = Story(None, at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    placeholder = f"polar:{life.customer['id']}"
    spent = [ledger.deduct(placeholder, 70 + n, at=at("04-02")) for n in range(2)]
    ledger.add_user("ann")
    ledger.link(placeholder, "ann")
    ledger.reverse(spent[1].transaction.id, at=at("04-05"))
    ledger.reverse(spent[0].transaction.id, at=at("04-20"))
    for until in ("04-10", "04-20"):
        archive(url, at(until))
        for receipt in spent:
            with pytest.raises(AlreadyReversed):
                ledger.reverse(receipt.transaction.id)
        assert verify(ledger).problems == []


def test_the_command_line_says_what_is_archived(
    url: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a list ends early, what cannot be told, and how many entries were checked."""

    def run(*arguments: str) -> tuple[str, str]:
        with pytest.raises(SystemExit):
            main([*arguments])
        told = capsys.readouterr()
        return told.out, told.err

    monkeypatch.setenv("POLARCREDITS_DATABASE_URL", url)
    monkeypatch.setenv("POLAR_PRO_PRODUCT_ID", "pro")
    ledger.grant("ann", 50, create=True, at=at("04-01"))
    ledger.deduct("ann", 5, at=at("04-02"))
    assert run("credits", "history", "ann")[1] == ""
    ledger.grant("ann", 50, at=at("04-03"))
    ledger.deduct("ann", 1, at=at("04-04"))
    archive(url, at("04-03"))
    told = "Entries up to 2027-04-02 00:00:00Z are archived.\n"
    assert run("credits", "history", "ann")[1] == told
    assert run("credits", "history", "ann", "--until", "2027-04-01T00:00:00Z") == ("No entries.\n", told)
    assert run("credits", "history", "ann", "--since", "2027-04-02T00:00:00Z")[1] == told
    assert run("credits", "history", "ann", "--since", "2027-04-02T00:00:01Z")[1] == ""
    assert run("credits", "history", "ann", "--limit", "2")[1] == ""
    assert (
        "up to 2027-04-02T00:00:00Z are archived"
        in run("credits", "show", "ann", "--at", "2027-04-01T12:00:00Z")[1]
    )
    assert "txn_1_3' is archived" in run("credits", "reverse", "txn_1_3")[1]
    assert run("ledger", "verify")[0] == "1 user, 2 entries: all is well.\n"
    assert "archived" in run("credits", "explain", "ann", "--at", "2027-04-05T00:00:00Z")[0]


def test_what_was_archived_can_be_dumped_and_restored_anywhere(postgres: str) -> None:
    """With the options that the document names, into a database that has nothing else."""
    url, empty = copy_of_template(postgres), copy_of_template(postgres)
    with Ledger(url, catalog()) as ledger:
        ledger.grant("ann", 50, create=True, at=at("04-01"))
        ledger.deduct("ann", 5, at=at("04-02"))
        ledger.grant("ann", 50, at=at("04-03"))
    archive(url, at("04-03"))
    (options,) = re.findall(
        r"`pg_dump (-t '\*_archive' [^`]*)`", DOCUMENT.read_text("utf-8").replace("\n", " ")
    )
    with psycopg.connect(postgres) as connection:
        (folder,) = connection.execute("SELECT setting FROM pg_config WHERE name = 'BINDIR'").fetchone() or (
            "",
        )
    dump = subprocess.run(
        [Path(folder) / "pg_dump", url, *shlex.split(options)], capture_output=True, check=True, timeout=60
    )
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    subprocess.run(
        [Path(folder) / "psql", empty, "-1", "-v", "ON_ERROR_STOP=1"],
        input=dump.stdout,
        capture_output=True,
        check=True,
        timeout=60,
    )
    both = []
    for each in (url, empty):
        with psycopg.connect(each) as connection:
            both.append(
                [
                    sorted(connection.execute(f"SELECT * FROM {table}_archive".encode()), key=repr)
                    for table in ("credit_transactions", "grant_draws")
                ]
            )
    assert both[0] == both[1]
    assert [len(rows) for rows in both[0]] == [3, 1]


def test_archiving_where_functions_are_made_elsewhere(postgres: str) -> None:
    """The guard that lets go is the one that is there, whatever schema comes first."""
    url = copy_of_template(postgres)
    with psycopg.connect(url, autocommit=True) as connection:
        name = connection.info.dbname
        made = f"CREATE SCHEMA elsewhere; ALTER DATABASE {name} SET search_path = elsewhere, public"
        connection.execute(made.encode())
    with Ledger(url, catalog()) as ledger:
        ledger.grant("ann", 50, create=True, at=at("04-01"))
        ledger.deduct("ann", 5, at=at("04-02"))
        ledger.grant("ann", 50, at=at("04-03"))
        archive(url, at("04-03"))
        assert len(history(ledger, "ann")) == 1
        assert verify(ledger).problems == []
        with pytest.raises(DatabaseError, match="append-only"), ledger.begin() as joined:
            joined.exec_driver_sql("DELETE FROM credit_transactions")


def test_archiving_beside_spenders_where_transactions_are_repeatable_by_default(postgres: str) -> None:
    """Busy accounts are skipped all the same. The lock is taken slowly here, so that somebody has spent."""
    url = copy_of_template(postgres)
    with psycopg.connect(url, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(
            f"""
            CREATE SCHEMA slow;
            CREATE FUNCTION slow.pg_advisory_xact_lock(key integer) RETURNS void LANGUAGE sql AS
             'SELECT pg_catalog.pg_advisory_xact_lock(key); SELECT pg_sleep(0.2)';
            ALTER DATABASE {name} SET search_path = public, slow, pg_catalog;
            ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read';
            """.encode()
        )
    with Ledger(url, catalog()) as ledger, ThreadPoolExecutor(1) as pool:
        ledger.grant("ann", 10**6, create=True, at=at("04-01"))
        archiving = pool.submit(archive, url, at("04-03"))
        while not archiving.done():
            ledger.deduct("ann", 1)
        assert archiving.result() is None
        assert verify(ledger).problems == []
