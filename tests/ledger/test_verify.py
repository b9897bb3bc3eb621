"""Every kind of damage is found and named, on the account that has it and on no other."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import Connection, text

from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.verify import verify
from polarcredits.refill import refill
from polarcredits.webhooks.fixtures import Story
from tests.ledger.conftest import copy_of_template
from tests.ledger.worlds import at, catalog, feed

DAMAGE = [
    ("UPDATE credit_balances SET balance = balance + 1", {"balance", "grants"}),
    ("UPDATE credit_balances SET balance = balance + 1, unsettled = unsettled - 1", {"balance"}),
    ("UPDATE credit_balances SET sequence = sequence + 1", {"sequence"}),
    ("UPDATE credit_balances SET sequence = sequence - 1", {"sequence"}),
    ("UPDATE credit_balances SET held = held + 1", {"held"}),
    ("UPDATE credit_balances SET unsettled = unsettled + 1", {"grants"}),
    ("UPDATE credit_balances SET unsettled = 9999999", {"settlement"}),
    ("DELETE FROM credit_balances", {"no_balance"}),
    (
        "UPDATE ENTRIES SET amount = amount - 1 WHERE sequence = :deduct",
        {"balance_after", "balance"},
    ),
    (
        "UPDATE ENTRIES SET balance_after = balance_after - 1 WHERE sequence = :deduct",
        {"balance_after"},
    ),
    (
        "UPDATE ENTRIES SET occurred_at = occurred_at + 99999999999999 WHERE sequence = 2",
        {"time"},
    ),
    ("UPDATE ENTRIES SET grant_id = NULL WHERE sequence = 1", {"grant"}),
    ("UPDATE ENTRIES SET sequence = 9999 WHERE sequence = :last", {"gap", "sequence"}),
    ("DELETE FROM ENTRIES WHERE sequence = :deduct", {"gap"}),
    ("DELETE FROM ENTRIES WHERE sequence = :last", {"sequence", "balance"}),
    ("UPDATE grants SET remaining = remaining + 1 WHERE source = 'lifetime'", {"grant", "grants"}),
    ("UPDATE grants SET used = used + 1 WHERE source = 'lifetime'", {"used"}),
    ("UPDATE grants SET carried_in = carried_in + 1 WHERE source = 'lifetime'", {"carried"}),
    ("UPDATE grants SET held = held + 1 WHERE source = 'lifetime'", {"held"}),
    ("UPDATE grant_draws SET balance_from = balance_from + 1, balance_to = balance_to + 1", {"draws"}),
    (
        "UPDATE grant_draws SET last_sequence = last_sequence - 1 WHERE last_sequence > first_sequence",
        {"draws"},
    ),
    ("UPDATE grant_draws SET credits = credits + 1", {"draws"}),
    ("DELETE FROM grant_draws", {"grant", "used"}),
    ("UPDATE grant_carries SET amount = amount + 1", {"carried"}),
    ("DELETE FROM grant_carries", {"carried"}),
    ("DELETE FROM holds", {"held"}),
    ("UPDATE holds SET amount = amount + 1", {"held"}),
    (
        "UPDATE grant_draws SET credits = credits + 1, balance_from = balance_from + 1"
        " WHERE first_sequence = 3;"
        "UPDATE grant_draws SET credits = credits - 1, balance_from = balance_from - 1"
        " WHERE first_sequence = 4 AND position = 0",
        {"draws"},
    ),
]
"""Statements, which are confined to Ann's account, and laws that must be named."""

DAMAGE_UNSETTLED = [
    (
        "UPDATE ENTRIES SET sequence = sequence + 9; UPDATE credit_balances SET sequence = sequence + 9",
        {"gap"},
    ),
    ("UPDATE credit_balances SET sequence = sequence + 9", {"sequence"}),
    ("UPDATE grants SET expired = 1", {"settlement"}),
    ("DELETE FROM ENTRIES; DELETE FROM grants; DELETE FROM credit_balances", {"no_balance"}),
]
"""The same on Cid's, who has spent his last credit and was never settled."""


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """Ann, who owed, spent, was given back and holds; and Ben, who has the like and is left alone."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('world') / 'credits.db'}"
    else:
        url = copy_of_template(request.getfixturevalue("postgres"))
    with Ledger(url, catalog(), actor="test") as ledger:
        for name in ("ann", "ben"):
            life = Story(name, at=at("04-01"))
            feed(ledger, life.purchase("pro"))
            ledger.deduct(name, 10, at=at("04-02"))
            refill(ledger, user=name, at=at("04-02"))
            ledger.deduct(name, 5490, at=at("04-02"))
            feed(ledger, life.refund(1000, at("04-03")))
            feed(ledger, life.renewal(at("05-01")))
            spent = [ledger.deduct(name, 7 + n) for n in range(4)]
            ledger.reverse(spent[1].transaction.id)
            ledger.hold(name, 50, ttl=timedelta(hours=24))
            ledger.deduct(name, 3)
            ledger.deduct(name, 4)
        ledger.add_user("cid")
        ledger.deduct("cid", 400)
        ledger.deduct("cid", 600)
        yield ledger


def unguarded(connection: Connection) -> None:
    """Take the guards of the entries away, as only an administrator can."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("ALTER TABLE credit_transactions DISABLE TRIGGER USER"))
        return
    for guard in ("update", "delete"):
        connection.execute(text(f"DROP TRIGGER credit_transactions_no_{guard}"))


def test_an_undamaged_world_is_well(world: Ledger) -> None:
    """Nothing is found, and everybody was looked at."""
    found = verify(world)
    assert (found.problems, found.users) == ([], 3)
    each = [verify(world, user=user).transactions for user in ("ann", "ben", "cid")]
    assert found.transactions == sum(each) == 2 * each[0] + 3 > 25


def harm(connection: Connection, damage: str, account: int) -> None:
    """Run the statements of *damage* on one account; each must hit something."""
    unguarded(connection)
    find = f"SELECT max(sequence) FROM credit_transactions WHERE account_id = {account}"
    last = connection.execute(text(find)).scalar_one()
    reversal = connection.execute(text(f"{find} AND type = 'reversal'")).scalar() or 0
    for statement in damage.replace("ENTRIES", "credit_transactions").split(";"):
        sql = f"{statement} {'AND' if 'WHERE' in statement else 'WHERE'} account_id = {account}"
        known = {"last": last, "deduct": reversal - 1}
        used = {name: value for name, value in known.items() if f":{name}" in sql}
        assert connection.execute(text(sql), used).rowcount > 0


@pytest.mark.parametrize(
    ("user", "damage", "laws"),
    [*(("ann", *each) for each in DAMAGE), *(("cid", *each) for each in DAMAGE_UNSETTLED)],
)
def test_damage_is_named(user: str, damage: str, laws: set[str], world: Ledger) -> None:
    """Both the look at everybody and the look at one user name it; nobody else is accused."""
    with world.rehearse() as stage:
        stage.reading(lambda connection: harm(connection, damage, {"ann": 1, "cid": 3}[user]))
        found = verify(stage).problems
        assert laws <= {problem.code for problem in found}
        assert {problem.user for problem in found} == {user}
        assert verify(stage, user=user).problems == found
        assert verify(stage, user="ben").problems == []
    assert verify(world).problems == []


def test_verify_follows_an_account_that_was_linked(ledger: Ledger) -> None:
    """Draws and reversals of the account that was merged belong to the grants' new owner."""
    life = Story(None, at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    placeholder = f"polar:{life.customer['id']}"
    spent = ledger.deduct(placeholder, 70, at=at("04-02"))
    ledger.deduct(placeholder, 30, at=at("04-02"))
    ledger.reverse(spent.transaction.id, at=at("04-02"))
    ledger.add_user("ann")
    ledger.link(placeholder, "ann")
    ledger.deduct("ann", 5)
    refill(ledger)
    assert verify(ledger).problems == []


def test_what_is_left_on_an_account_that_was_merged(world: Ledger) -> None:
    """Nobody could spend it: it is named, also where one asks for the user who should have it."""
    with world.rehearse() as stage:
        merge = text("UPDATE accounts SET alias_of = 1 WHERE user_id = 'ben'")
        stage.reading(lambda connection: connection.execute(merge))
        found = verify(stage).problems
        assert [(problem.code, problem.user) for problem in found] == [("merged", "ben")]
        assert verify(stage, user="ann").problems == verify(stage, user="ben").problems == found
        assert verify(stage, user="cid").problems == []


def test_progress_is_told(world: Ledger) -> None:
    """The last step is the whole."""
    steps: list[tuple[int, int]] = []
    verify(world, progress=lambda done, total: steps.append((done, total)))
    assert steps
    assert steps[-1][0] == steps[-1][1]
