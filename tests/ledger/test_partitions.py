"""The SQL of docs/scaling.md that cuts the entries into partitions, run on a real PostgreSQL."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest

from polarcredits.errors import AlreadyReversed, KeyReused
from polarcredits.ledger.database import Database
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.verify import verify
from polarcredits.ledger.views import history
from polarcredits.webhooks.fixtures import Story
from tests.benchmarks.bulk import fill
from tests.ledger.archives import archive, count
from tests.ledger.conftest import copy_of_template
from tests.ledger.worlds import at, catalog, dump, feed, move

DOCUMENT = Path(__file__).parents[2] / "docs" / "scaling.md"

_ROLES = """
DO $$ BEGIN
  CREATE ROLE "the application";
  CREATE ROLE reader;
EXCEPTION WHEN duplicate_object THEN NULL; END $$;
GRANT SELECT, INSERT ON credit_transactions TO "the application";
GRANT SELECT ON credit_transactions TO reader WITH GRANT OPTION;
GRANT REFERENCES ON credit_transactions TO PUBLIC;
"""


@pytest.fixture
def parted(postgres: str) -> str:
    """A database with entries, then cut into partitions as the document says; what it held is there."""
    url = copy_of_template(postgres)
    database = Database(url)
    fill(database, users=60, entries=9)
    database.close()
    with Ledger(url, catalog()) as ledger:
        feed(ledger, Story("ann", at=at("04-01")).purchase("pro"))
        ledger.deduct("ann", 5, idempotency_key="before")
        ledger.reverse(ledger.deduct("ann", 6).transaction.id)
        before = dump(ledger)
        [sql] = [
            each
            for each in re.findall(r"```sql\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
            if "PARTITION BY" in each
        ]
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(_ROLES)
            connection.execute(sql)
        assert dump(ledger) == before
    return url


def test_the_program_works_on_partitions(parted: str) -> None:
    """Deductions, keys, reversals, purchases and the laws are as before."""
    with Ledger(parted, catalog()) as ledger:
        assert verify(ledger).problems == []
        assert ledger.deduct("ann", 5, idempotency_key="before").replayed
        spent = ledger.deduct("ann", 7, idempotency_key="after")
        assert ledger.deduct("ann", 7, idempotency_key="after").replayed
        with pytest.raises(KeyReused):
            ledger.deduct("ann", 8, idempotency_key="after")
        ledger.reverse(spent.transaction.id)
        with pytest.raises(AlreadyReversed):
            ledger.reverse(spent.transaction.id)
        feed(ledger, Story("ben", at=at("04-01")).purchase("pro"))
        assert len(history(ledger, "user-7")) == 9
        assert verify(ledger).problems == []


def test_partitions_and_archives_are_migrated(parted: str) -> None:
    """Down to the CHECKs and up to the domains again, with every entry where it was."""
    archive(parted, at("04-20"), step=9)
    with psycopg.connect(parted) as connection:
        elsewhere = "SELECT count(*) FROM information_schema.columns WHERE table_name LIKE '%archive' AND "
        assert connection.execute(f"{elsewhere} domain_name IS NOT NULL".encode()).fetchone() == (0,)
        assert connection.execute(f"{elsewhere} column_name = 'amount'".encode()).fetchone() == (1,)
    with Ledger(parted, catalog()) as ledger:
        before = dump(ledger)
    for revision in ("0007", "head"):
        move(parted, revision)
    archive(parted, at("04-20"), step=9)
    with Ledger(parted, catalog()) as ledger:
        assert dump(ledger) == before
        ledger.deduct("ann", 1)
        assert verify(ledger).problems == []


def test_partitions_are_archived(parted: str) -> None:
    """The same lines do it; the guards stand as before."""
    archive(parted, at("04-20"), step=9)
    with Ledger(parted, catalog()) as ledger:
        assert count(ledger, "openings") == 61
        assert verify(ledger).problems == []
        assert [len(history(ledger, user)) for user in ("user-7", "user-8", "ann")] == [8, 4, 3]
        with psycopg.connect(parted) as connection, pytest.raises(psycopg.errors.RaiseException):
            connection.execute("DELETE FROM credit_transactions")


@pytest.mark.parametrize("table", ["credit_transactions", "credit_transactions_3"])
@pytest.mark.parametrize("statement", ["UPDATE {} SET amount = 2", "DELETE FROM {}", "TRUNCATE {}"])
def test_partitions_are_guarded(parted: str, table: str, statement: str) -> None:
    """The whole and each part refuse what the table refused; nothing moves."""
    with Ledger(parted, catalog()) as ledger:
        before = dump(ledger)
        with (
            psycopg.connect(parted, autocommit=True) as connection,
            pytest.raises(psycopg.errors.RaiseException, match="append-only"),
        ):
            connection.execute(statement.format(table))
        assert dump(ledger) == before


@pytest.mark.parametrize("table", ["credit_transactions", "credit_transactions_3"])
def test_what_other_roles_may_do_stays(parted: str, table: str) -> None:
    """The whole and each part are theirs as the table was."""
    with psycopg.connect(parted) as connection:
        owner, held = connection.execute(
            "SELECT relowner::regrole::text, array_agg((coalesce(nullif(grantee, 0)::regrole::text,"
            " 'PUBLIC'), privilege_type, is_grantable)::text) FROM pg_class, aclexplode(relacl)"
            " WHERE oid = %s::regclass AND grantee <> relowner GROUP BY 1",
            [table],
        ).fetchall()[0]
        assert owner == connection.info.user
    assert sorted(held) == [
        '("""the application""",INSERT,f)',
        '("""the application""",SELECT,f)',
        "(PUBLIC,REFERENCES,f)",
        "(reader,SELECT,t)",
    ]


def test_one_users_entries_are_looked_for_in_one_partition(parted: str) -> None:
    """What leads with the account is pruned."""
    with psycopg.connect(parted) as connection:
        plan = "\n".join(
            row[0]
            for row in connection.execute(
                "EXPLAIN SELECT * FROM credit_transactions WHERE account_id = 7"
                " ORDER BY sequence DESC LIMIT 50"
            )
        )
    assert len(set(re.findall(r"on (credit_transactions_\d+)", plan))) == 1, plan
