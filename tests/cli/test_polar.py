"""The commands that need Polar's API, over HTTP against a server that stands in for it."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from polarcredits.webhooks.endpoints import EVENTS
from polarcredits.webhooks.fixtures import Story
from polarcredits.webhooks.signature import Delivery, verify
from tests.cli.conftest import PRO, Run
from tests.stand_in.server import TOKEN, PolarStandIn
from tests.webhooks.recordings import SECRET

STRANGE = "a/b?c#d é"
ANN = ("--user", "ann", "--email", "ann@example.com")


def counts(polar: PolarStandIn) -> tuple[int, ...]:
    return tuple(polar.count(kind) for kind in ("customer", "checkout", "endpoint"))


def test_a_checkout_is_the_users(polar: PolarStandIn, run: Run) -> None:
    """The customer is there first, with the id; the id is in the metadata too (§7.3)."""
    code, told = run(
        "checkout", "--plan", "pro", "--user", STRANGE, "--email", "a@example.com",
        "--metadata", "campaign=may", "--success-url", "https://example.com/ok?c={CHECKOUT_ID}",
        "--return-url", "https://example.com/back",
    )  # fmt: skip
    assert code == 0
    assert {"id", "url", "expires_at", "status", "plan", "pack", "user"} <= told.keys()
    assert (told["status"], told["plan"], told["pack"], told["user"]) == ("open", "pro", None, STRANGE)
    held = polar.state.objects["checkout"][told["id"]]
    assert held["metadata"]["user_id"] == STRANGE
    assert held["metadata"]["campaign"] == "may"
    customer = polar.state.objects["customer"][held["customer_id"]]
    assert (customer["external_id"], customer["email"]) == (STRANGE, "a@example.com")
    assert held["success_url"] == "https://example.com/ok?c={CHECKOUT_ID}"
    run("checkout", "--plan", "pro", "--user", STRANGE)
    assert counts(polar) == (1, 2, 0)


def test_the_ledger_knows_the_address(polar: PolarStandIn, run: Run) -> None:
    """Who was added with an e-mail address needs no --email; who was not is asked for it."""
    run("users", "add", "ann", "--email", "ann@example.com", "--name", "Ann")
    assert run("checkout", "--plan", "pro", "--user", "ann")[0] == 0
    assert next(iter(polar.state.objects["customer"].values()))["name"] == "Ann"
    code, told = run("checkout", "--plan", "pro", "--user", "bob")
    assert (code, told["error"]["code"]) == (5, "invalid_input")
    assert "--email" in told["error"]["message"]
    assert counts(polar) == (1, 1, 0)


def test_what_would_be_refused_later_is_refused_now(polar: PolarStandIn, run: Run) -> None:
    """A subscriber is sent to the portal; nothing is made."""
    story = Story("ann", at=datetime.now(UTC))
    story.purchase(PRO)
    polar.state.load_story(story)
    code, told = run("checkout", "--plan", "pro", *ANN)
    assert (code, told["error"]["code"]) == (5, "invalid_input")
    assert "polarcredits portal ann" in told["error"]["message"]
    code, told = run("checkout", "--plan", "pro", "--email", "ann@example.com")
    assert (code, told["error"]["code"]) == (5, "invalid_input")
    assert polar.count("checkout") == 0
    polar.state.several_subscriptions = True
    assert run("checkout", "--plan", "pro", *ANN)[0] == 0


def test_a_free_subscription_is_upgraded(polar: PolarStandIn, run: Run) -> None:
    """The checkout carries the free subscription's id, so that Polar lets the buyer through."""
    free = polar.state.add_product("Free", price=0)
    story = Story("ann", at=datetime.now(UTC))
    story.purchase(free, amount=0)
    polar.state.load_story(story)
    code, told = run("checkout", "--plan", "pro", "--user", "ann")
    assert code == 0
    assert story.subscription is not None
    assert polar.state.objects["checkout"][told["id"]]["subscription_id"] == story.subscription["id"]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code"),
    [
        (["checkout"], 2, "usage"),
        (["checkout", "--plan", "pro", "--pack", "small"], 2, "usage"),
        (["checkout", "--plan", "gold"], 3, "not_found"),
        (["checkout", "--pack", "small"], 3, "not_found"),
        (["checkout", "--plan", "free"], 5, "invalid_input"),
        (["checkout", "--plan", "pro", "--user", " ann"], 5, "invalid_input"),
        (["checkout", "--plan", "pro", "--user", "polar:c1"], 5, "invalid_input"),
        (["checkout", "--plan", "pro", *ANN, "--metadata", "user_id=bob"], 5, "invalid_input"),
        (["checkout", "--plan", "pro", *ANN, "--metadata", "novalue"], 5, "invalid_input"),
        (["checkout", "--plan", "pro", *ANN, "--metadata", f"{'k' * 41}=v"], 5, "invalid_input"),
        (["checkout", "--plan", "pro", *ANN, "--discount", "d1"], 6, "polar_refused"),
        (["portal", "nobody"], 3, "not_found"),
        (["sync", "nobody"], 3, "not_found"),
        (["sync", "ann", "--since", "2d"], 2, "usage"),
        (["sync", "--since", "yesterday"], 5, "invalid_input"),
        (["refill", "--sync", "--dry-run"], 2, "usage"),
        (["webhooks", "register", "example.com"], 5, "invalid_input"),
        (["webhooks", "register", "https://"], 5, "invalid_input"),
        (["webhooks", "pull", "--since", "soon"], 5, "invalid_input"),
        (["webhooks", "trigger", "nonsense"], 5, "invalid_input"),
        (["webhooks", "trigger", "pack"], 7, "config"),
        (["webhooks", "trigger", "purchase", "--to", "example.com"], 5, "invalid_input"),
        (["webhooks", "replay", "--all", "--to", "http://x", "--dry-run"], 2, "usage"),
        (["init"], 2, "usage"),
    ],
)
def test_refusals_make_nothing(
    arguments: list[str], exit_code: int, code: str, polar: PolarStandIn, run: Run
) -> None:
    """Each with its code; Polar has no checkout or endpoint afterwards, and nobody a credit."""
    got, told = run(*arguments)
    assert (got, told["error"]["code"]) == (exit_code, code)
    assert counts(polar)[1:] == (0, 0)
    assert run("credits", "list") == (0, {"users": []})


@pytest.mark.parametrize(
    ("kind", "code"),
    [("500", "polar_unavailable"), ("html", "polar_unavailable"), ("redirect", "polar_refused")],
)
def test_a_bad_polar_is_told(kind: str, code: str, polar: PolarStandIn, run: Run) -> None:
    """Every command that asks Polar ends with exit 6, in good time, and nothing half done."""
    for arguments in (
        ["checkout", "--plan", "pro", *ANN],
        ["portal", "ann"],
        ["sync"],
        ["sync", "ann"],
        ["plans", "diff"],
        ["webhooks", "pull"],
        ["webhooks", "register", "https://example.com/hook"],
    ):
        polar.misbehave(kind, times=99)
        began = time.monotonic()
        got, told = run(*arguments)
        assert (got, told["error"]["code"]) == (6, code), arguments
        assert time.monotonic() - began < 30
        polar.behave()
    assert counts(polar) == (0, 0, 0)


def test_without_a_token(polar: PolarStandIn, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 7, naming the setting."""
    monkeypatch.delenv("POLAR_ACCESS_TOKEN")
    code, told = run("checkout", "--plan", "pro", *ANN)
    assert (code, told["error"]["code"], told["error"]["setting"]) == (7, "config", "POLAR_ACCESS_TOKEN")


def test_products_that_cannot_be_sold(polar: PolarStandIn, run: Run) -> None:
    """An archived product, and one that is not there, are told before any customer is made."""
    polar.state.objects["product"][PRO]["is_archived"] = True
    code, told = run("checkout", "--plan", "pro", *ANN)
    assert (code, told["error"]["code"]) == (7, "config")
    assert "is archived" in told["error"]["message"]
    del polar.state.objects["product"][PRO]
    code, told = run("checkout", "--plan", "pro", *ANN)
    assert code == 7
    assert counts(polar) == (0, 0, 0)


@pytest.mark.parametrize("named", [True, False])
def test_wait_ends_with_the_new_balance(named: bool, polar: PolarStandIn, run: Run) -> None:
    """Once it is paid, the facts are taken and the balance is told; a nameless buyer has it too."""

    def buyer() -> None:
        while not polar.count("checkout"):
            time.sleep(0.05)
        time.sleep(0.5)
        with polar.lock:
            polar.state.pay(next(iter(polar.state.objects["checkout"])))

    paying = threading.Thread(target=buyer)
    paying.start()
    code, told = run("checkout", "--plan", "pro", "--wait", *(ANN if named else ()))
    paying.join()
    assert (code, told["status"], told["balance"], told["available"]) == (0, "succeeded", 6000, 6000)
    customer = next(iter(polar.state.objects["customer"]))
    assert told["user"] == ("ann" if named else f"polar:{customer}")
    assert run("credits", "show", told["user"])[1]["plan"] == "pro"


def test_wait_ends_when_the_checkout_expires(polar: PolarStandIn, run: Run) -> None:
    """Nothing was bought, and nothing changes."""
    expiring = threading.Timer(1.0, lambda: _expire(polar))
    expiring.start()
    code, told = run("checkout", "--plan", "pro", "--wait", *ANN)
    expiring.join()
    assert (code, told["status"], told["balance"]) == (0, "expired", None)


def _expire(polar: PolarStandIn) -> None:
    with polar.lock:
        for held in polar.state.objects["checkout"].values():
            held["status"] = "expired"


def test_portal(polar: PolarStandIn, run: Run) -> None:
    """By external id; for an account without one, by customer id. It says when the link dies."""
    polar.state.add_customer("a@example.com", STRANGE)
    code, told = run("portal", STRANGE, "--return-url", "https://example.com/")
    assert (code, told["user"]) == (0, STRANGE)
    assert told["url"].startswith("https://polar.example/portal")
    assert told["expires_at"].endswith("Z")
    nameless = polar.state.add_customer("b@example.com")
    run("sync")
    assert run("portal", f"polar:{nameless['id']}")[0] == 0


def test_sync_rebuilds_and_repeats_nothing(polar: PolarStandIn, run: Run, database: Path) -> None:
    """From an empty database: plan, payment and allowance; again: nothing. A dry run: the same report."""
    story = Story(STRANGE, at=datetime.now(UTC) - timedelta(days=3))
    story.purchase(PRO)
    polar.state.load_story(story)
    code, rehearsed = run("sync", "--dry-run")
    assert (code, run("credits", "list")[1]) == (0, {"users": []})
    code, told = run("sync")
    assert code == 0
    assert told == rehearsed
    assert told["checked"] == {"customers": 1, "subscriptions": 1, "orders": 1, "refunds": 0, "disputes": 0}
    assert {each["kind"] for each in told["changed"]} == {"customer", "subscription", "order", "credits"}
    assert all({"user", "kind", "id", "before", "after"} <= each.keys() for each in told["changed"])
    code, shown = run("credits", "show", STRANGE)
    assert (shown["plan"], shown["balance"]) == ("pro", 6000)
    assert run("sync")[1]["changed"] == []
    assert run("sync", STRANGE)[1]["changed"] == []
    assert run("sync", "--since", "30d")[1]["changed"] == []
    assert run("ledger", "verify")[0] == 0
    assert _count(database, "observations") <= 12


def _count(database: Path, table: str) -> int:
    with sqlite3.connect(database) as connection:
        found = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    connection.close()
    return int(found)


@pytest.mark.parametrize("since", [(), ("--since", "5d")])
def test_sync_hears_what_no_webhook_told(since: tuple[str, ...], polar: PolarStandIn, run: Run) -> None:
    """A dispute that was lost, a subscription that ended, a customer that is gone."""
    story = Story("ann", at=datetime.now(UTC) - timedelta(days=3))
    story.purchase(PRO)
    polar.state.load_story(story)
    polar.state.clock = datetime.now(UTC) - timedelta(hours=3)
    run("sync", *since)
    polar.state.clock += timedelta(hours=1)
    polar.state.put("dispute", {"order_id": story.orders[0]["id"], "status": "lost"})
    told = run("sync", *since)[1]
    assert {each["kind"] for each in told["changed"]} == {"dispute", "credits"}
    assert run("credits", "show", "ann")[1]["balance"] == 1000
    polar.state.clock += timedelta(hours=1)
    story.revoke(polar.state.clock)
    polar.state.load_story(story)
    polar.state.clock += timedelta(minutes=1)
    run("sync", *since)
    assert run("credits", "show", "ann")[1]["plan"] == "free"
    polar.state.objects["customer"][story.customer["id"]]["deleted_at"] = polar.state.stamp()
    run("sync")
    assert run("users", "show", "ann")[1]["status"] == "closed"


def test_a_strangers_token_deletes_nobody(polar: PolarStandIn, run: Run) -> None:
    """A customer who is not there, seen with another organization's token, is reported: exit 9."""
    story = Story("ann", at=datetime.now(UTC))
    story.purchase(PRO)
    polar.state.load_story(story)
    run("sync")
    for kind in ("customer", "subscription", "order"):
        polar.state.objects[kind].clear()
    for product in polar.state.objects["product"].values():
        product["organization_id"] = "9f1b3d5e-0000-4000-8000-000000000000"
    code, told = run("sync")
    assert (code, len(told["failed"])) == (9, 1)
    assert run("users", "show", "ann")[1]["status"] == "active"


def test_refill_asks_about_what_looks_overdue(polar: PolarStandIn, run: Run) -> None:
    """The renewal that no webhook told is found, and refilled."""
    story = Story("ann", at=datetime.now(UTC) - timedelta(days=33))
    story.purchase(PRO)
    polar.state.load_story(story)
    polar.state.clock = datetime.now(UTC) - timedelta(days=32)
    run("sync")
    polar.state.clock = None
    story.renewal()
    polar.state.load_story(story)
    code, told = run("refill", "--sync")
    assert (code, told["failed"]) == (0, [])
    assert run("credits", "show", "ann")[1]["balance"] == 6000


def test_refill_goes_on_without_polar(polar: PolarStandIn, run: Run) -> None:
    """A Polar that is away is reported (9), and what is known is refilled."""
    story = Story("ann", at=datetime.now(UTC) - timedelta(days=33))
    story.purchase(PRO)
    polar.state.load_story(story)
    polar.state.clock = datetime.now(UTC) - timedelta(days=32)
    run("sync")
    polar.misbehave("500", times=99)
    code, told = run("refill", "--sync")
    assert code == 9
    assert told["failed"][0]["user"] is None
    assert run("credits", "show", "ann")[1]["balance"] == 1000


def test_pull_takes_what_was_missed(polar: PolarStandIn, run: Run) -> None:
    """Each event once, whatever the number of attempts; what Polar has erased is told."""
    endpoint = polar.state.add_endpoint()["id"]
    events = Story("ann", at=datetime.now(UTC)).purchase(PRO)
    ids = [polar.state.add_delivery(endpoint, each, succeeded=False) for each in events]
    polar.state.add_delivery(endpoint, events[0], succeeded=False, event=ids[0])
    code, rehearsed = run("webhooks", "pull", "--dry-run")
    code, told = run("webhooks", "pull")
    assert code == 0
    assert told == rehearsed
    assert (told["applied"], told["duplicates"]) == (len(events), 0)
    assert {each["id"] for each in told["events"]} == set(ids)
    assert run("credits", "show", "ann")[1]["balance"] == 6000
    assert run("webhooks", "pull", "--since", "1h")[1]["duplicates"] == len(events)
    polar.state.add_delivery(endpoint, events[0], succeeded=False, erased=True)
    code, told = run("webhooks", "pull")
    assert (code, told["refused"]) == (9, 1)


def test_register_makes_repairs_and_keeps_the_secret(
    polar: PolarStandIn, run: Run, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One endpoint, whatever the number of calls; the secret is in .env for its owner alone."""
    url = "https://example.com/webhooks/polar"
    code, told = run("webhooks", "register", url)
    assert code == 0
    held = polar.state.objects["endpoint"][told["id"]]
    assert (set(held["events"]), held["api_version"]) == (set(EVENTS), "2026-10")
    saved = Path(told["secret_saved_to"])
    assert saved == database.parent / ".env"
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    assert f"POLAR_WEBHOOK_SECRET={held['secret']}" in saved.read_text()
    assert held["secret"] not in str(told)
    held |= {"enabled": False, "events": ["product.created"], "api_version": "2026-04"}
    saved.write_text("POLAR_WEBHOOK_SECRET=old\nOTHER=kept\n")
    code, told = run("webhooks", "register", url)
    assert (code, polar.count("endpoint")) == (0, 1)
    assert held["enabled"]
    assert set(held["events"]) == {*EVENTS, "product.created"}
    assert saved.read_text() == f"POLAR_WEBHOOK_SECRET={held['secret']},old\nOTHER=kept\n"
    capsys.readouterr()


@pytest.mark.parametrize(
    ("sequence", "plan", "balance"),
    [
        ("purchase", "pro", 6000),
        ("trial", "pro", 1000),
        ("renewal", "pro", 6000),
        ("failed-renewal", "pro", 1000),
        ("recovery", "pro", 6000),
        ("cancel", "pro", 6000),
        ("uncancel", "pro", 6000),
        ("revoke", "free", 1000),
        ("pause", "free", 6000),
        ("resume", "pro", 6000),
        ("refund", "pro", 1000),
        ("customer-deleted", "free", 1000),
    ],
)
def test_trigger(sequence: str, plan: str, balance: int, run: Run) -> None:
    """Each sequence stands alone, and is applied as any other delivery."""
    code, told = run("webhooks", "trigger", sequence, "--user", STRANGE)
    assert (code, told["failed"], told["refused"]) == (0, 0, 0)
    shown = run("credits", "show", STRANGE)[1]
    if sequence != "failed-renewal":
        assert (shown["plan"], shown["balance"]) == (plan, balance)
    assert shown["plan"] == plan


def test_trigger_goes_on_from_what_is_known(run: Run) -> None:
    """A life, step by step: one subscription."""
    for sequence in ("purchase", "cancel", "uncancel", "renewal", "refund"):
        run("webhooks", "trigger", sequence, "--user", "ann")
    assert len(run("subscriptions", "list")[1]["subscriptions"]) == 1
    assert len(run("payments", "list")[1]["payments"]) == 2


def test_trigger_never_in_production(run: Run, monkeypatch: pytest.MonkeyPatch, database: Path) -> None:
    """Made-up purchases never become real credits."""
    monkeypatch.setenv("POLAR_ENVIRONMENT", "production")
    code, told = run("webhooks", "trigger", "purchase")
    assert (code, told["error"]["code"]) == (5, "invalid_input")
    assert run("credits", "list")[1] == {"users": []}


def test_doctor_finds_each_fault(polar: PolarStandIn, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is well once registered; then each thing that breaks is found, with its fix."""
    run("webhooks", "register", "https://example.com/webhooks/polar")
    held = next(iter(polar.state.objects["endpoint"].values()))
    monkeypatch.setenv("POLAR_WEBHOOK_SECRET", held["secret"])
    code, told = run("doctor")
    assert (code, told["ok"]) == (0, True), told
    assert all({"name", "status", "detail", "fix"} == each.keys() for each in told["checks"])

    def failing() -> set[str]:
        code, told = run("doctor")
        assert (code == 10) == (not told["ok"])
        bad = [each for each in told["checks"] if each["status"] != "ok"]
        assert all(each["fix"] for each in bad)
        return {each["name"] for each in bad}

    def broken(fault: Callable[[], Any], mend: Callable[[], Any]) -> set[str]:
        fault()
        found = failing()
        mend()
        return found

    state = polar.state
    assert broken(lambda: held.update(enabled=False), lambda: held.update(enabled=True)) == {"endpoint"}
    events = held["events"]
    assert broken(lambda: held.update(events=events[1:]), lambda: held.update(events=events)) == {"endpoint"}
    assert broken(lambda: held.update(api_version="2026-04"), lambda: held.update(api_version="2026-10")) == {
        "endpoint"
    }
    product = state.objects["product"][PRO]
    assert broken(
        lambda: product.update(recurring_interval=None), lambda: product.update(recurring_interval="month")
    ) == {"plan pro"}
    assert broken(lambda: product.update(is_archived=True), lambda: product.update(is_archived=False)) == {
        "plan pro"
    }
    assert broken(lambda: polar.scopes_lacking.add("POST /v1/checkouts/"), polar.scopes_lacking.clear) == {
        "scopes"
    }
    assert broken(
        lambda: setattr(state, "clock", datetime.now(UTC) + timedelta(minutes=9)),
        lambda: setattr(state, "clock", None),
    ) == {"clock"}
    assert broken(
        lambda: monkeypatch.setenv("POLAR_WEBHOOK_SECRET", "other"),
        lambda: monkeypatch.setenv("POLAR_WEBHOOK_SECRET", held["secret"]),
    ) == {"secret"}
    state.add_delivery(held["id"], {"type": "order.paid"}, succeeded=False, http_code=401)
    assert broken(lambda: None, state.objects["delivery"].clear) == {"deliveries"}
    story = Story("ann", at=datetime.now(UTC))
    story.purchase("unheard-of")
    state.load_story(story)
    state.objects["product"]["unheard-of"]["is_archived"] = True
    run("sync")
    assert failing() == {"product unheard-of"}
    monkeypatch.setenv("POLAR_ACCESS_TOKEN", "polar_oat_wrong")
    assert failing() == {"token"}
    assert run("doctor", "--offline")[0] == 0


def test_plans_diff(polar: PolarStandIn, run: Run) -> None:
    """What Polar sells against what the catalog says."""
    code, told = run("plans", "diff")
    assert (code, told["ok"]) == (0, True)
    polar.state.add_product("Gold")
    code, told = run("plans", "diff")
    assert (code, [each["status"] for each in told["findings"]]) == (0, ["ok", "warn"])
    polar.state.objects["product"].pop(PRO)
    code, told = run("plans", "diff")
    assert (code, told["ok"]) == (10, False)


def test_init_chooses_what_there_is_to_choose(polar: PolarStandIn, run: Run, database: Path) -> None:
    """A file that works, a database, and two commands; a file that is there is left alone."""
    code, told = run("init", "--yes")
    assert (code, told["written"], len(told["next"])) == (0, True, 2)
    assert PRO in Path(told["config"]).read_text()
    assert database.exists()
    assert run("plans")[1]["plans"][1]["product_ids"] == [PRO]
    Path(told["config"]).write_text("[operations]\nrender = 3\n")
    assert run("init", "--yes")[1]["written"] is False
    assert Path(told["config"]).read_text() == "[operations]\nrender = 3\n"


def test_the_token_is_never_shown(polar: PolarStandIn, run: Run, database: Path) -> None:
    """Not in output, not in files, whatever Polar answers (it repeats the token here)."""
    polar.misbehave("500", times=99)
    for arguments in (["sync"], ["doctor"], ["checkout", "--plan", "pro"]):
        told = run(*arguments)[1]
        assert TOKEN not in str(told)
    for folder, _, files in os.walk(database.parent):
        for name in files:
            assert TOKEN.encode() not in (Path(folder) / name).read_bytes()


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[Delivery], list[int]]]:
    """A server that verifies what is sent to it; it answers the codes in the list first, then 202."""
    taken: list[Delivery] = []
    codes: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            code = codes.pop(0) if codes else 202
            if code == 202:
                now = datetime.now(UTC)
                taken.append(verify(raw, dict(self.headers.items()), [SECRET], now=now))
            body = b'{"status": "applied"}'
            self.send_response(code)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/webhooks/polar", taken, codes
    server.shutdown()
    server.server_close()
    thread.join()


Receiver = tuple[str, list[Delivery], list[int]]


def test_trigger_to_another_server(receiver: Receiver, run: Run) -> None:
    """Freshly signed with the configured secret; nothing is booked here."""
    url, taken, _ = receiver
    code, told = run("webhooks", "trigger", "purchase", "--user", "ann", "--to", url)
    assert (code, told["applied"]) == (0, len(taken))
    assert taken[-1].type == "order.updated"
    assert run("credits", "list")[1] == {"users": []}


def test_replay_to_another_server(receiver: Receiver, run: Run) -> None:
    """The stored bytes under their own ids; a server that is away for a moment is asked again."""
    url, taken, codes = receiver
    run("webhooks", "trigger", "purchase", "--user", "ann")
    stored = run("webhooks", "list")[1]["events"]
    codes += [503, 500]
    code, told = run("webhooks", "replay", "--all", "--to", url)
    assert (code, told["applied"], told["failed"]) == (0, len(stored), 0)
    assert [each.id for each in taken] == [each["id"] for each in reversed(stored)]
    codes += [401]
    code, told = run("webhooks", "replay", stored[0]["id"], "--to", url)
    assert (code, told["refused"]) == (9, 1)
    assert "401" in told["events"][0]["error"]


def test_sending_needs_a_secret(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one nothing can be signed: exit 7."""
    monkeypatch.delenv("POLAR_WEBHOOK_SECRET")
    code, told = run("webhooks", "trigger", "purchase", "--to", "http://127.0.0.1:9/")
    assert (code, told["error"]["setting"]) == (7, "POLAR_WEBHOOK_SECRET")


def test_a_pack_is_sold_again_and_again(polar: PolarStandIn, run: Run, database: Path) -> None:
    """A subscriber may buy packs; a pack that is a subscription at Polar is refused."""
    once = polar.state.add_product("Pack", interval=None)
    (database.parent / "polarcredits.toml").write_text(
        f'[packs.small]\ncredits = 1000\nproduct_ids = ["{once}"]\n'
        f'[packs.wrong]\ncredits = 1\nproduct_ids = ["{PRO}"]\n'
    )
    for _ in range(2):
        code, told = run("checkout", "--pack", "small", *ANN)
        assert (code, told["pack"], told["plan"]) == (0, "small", None)
        polar.state.pay(told["id"])
    run("sync", "ann")
    assert run("credits", "show", "ann")[1]["balance"] == 3000
    code, told = run("checkout", "--pack", "wrong", *ANN)
    assert (code, told["error"]["code"]) == (7, "config")


def test_doctor_names_a_product_that_nothing_sells(
    run: Run, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that has no plan `pro` leaves POLAR_PRO_PRODUCT_ID without effect: that is told."""
    monkeypatch.setenv("POLAR_PRO_PRODUCT_ID", PRO)

    def found() -> list[str]:
        checks = run("doctor")[1]["checks"]
        return [each["detail"] for each in checks if each["name"] == "catalog"]

    assert found() == []
    file = database.parent / "polarcredits.toml"
    file.write_text("[operations]\nrender = 3\n")
    assert found() == [f"POLAR_PRO_PRODUCT_ID is not used: {file} has no plan pro"]


def test_doctor_looks_into_the_database(run: Run, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed events, an idle cron, broken laws, two users for one purchase, another environment."""

    def found() -> set[str]:
        checks = run("doctor", "--offline")[1]["checks"]
        return {each["name"] for each in checks if each["status"] != "ok"} - {"POLAR_ACCESS_TOKEN"}

    run("webhooks", "trigger", "purchase", "--user", "ann")
    assert found() == set()

    def change(sql: str) -> None:
        with sqlite3.connect(database) as connection:
            connection.execute(sql)
        connection.close()

    change("UPDATE webhook_events SET status = 'failed' WHERE type = 'order.paid'")
    assert found() == {"events"}
    change("UPDATE webhook_events SET status = 'applied'")
    change("UPDATE credit_balances SET next_due_at = 1")
    assert found() == {"refill"}
    run("refill")
    change("UPDATE credit_balances SET balance = balance + 1")
    assert found() == {"ledger"}
    change("UPDATE credit_balances SET balance = balance - 1")
    change("UPDATE payments SET user_id = 'bob'")
    assert found() == {"identity"}
    monkeypatch.setenv("POLAR_ENVIRONMENT", "production")
    assert "database" in found()
