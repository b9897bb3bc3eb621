"""Dead ends of the commands that need Polar: each has a way out, and nothing is made on the way."""

from __future__ import annotations

import json
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from polarcredits.polar_api import PolarApi
from polarcredits.polar_scopes import SCOPES
from polarcredits.polar_transport import Transport
from polarcredits.webhooks.endpoints import EVENTS
from polarcredits.webhooks.fixtures import Story
from polarcredits.webhooks.sending import Sender
from tests.cli.conftest import PRO, Run
from tests.stand_in.server import TOKEN, PolarStandIn
from tests.webhooks.recordings import SECRET

URL = "https://mine.example/webhooks/polar"


def bad(run: Run) -> dict[str, dict[str, Any]]:
    """Return what doctor does not find in order, by name."""
    return {each["name"]: each for each in run("doctor")[1]["checks"] if each["status"] != "ok"}


def test_a_taken_address_has_a_way_out(polar: PolarStandIn, run: Run) -> None:
    """The advice can be followed word for word; then the linked customer buys, for the user (§7.3)."""
    nameless = polar.state.add_customer("ann@example.com")
    code, told = run("checkout", "--plan", "pro", "--user", "ann", "--email", "ann@example.com")
    assert (code, told["error"]["code"], polar.count("checkout")) == (5, "invalid_input", 0)
    advised = [part.strip().split() for part in told["error"]["message"].split("polarcredits")[1:]]
    assert [words[0] for words in advised] == ["sync", "users"]
    for words in advised:
        assert run(*[word.rstrip(".,") for word in words if word != "then:"])[0] == 0
    code, told = run("checkout", "--plan", "pro", "--user", "ann")
    held = polar.state.objects["checkout"][told["id"]]
    assert (code, held["customer_id"], held["metadata"]["user_id"]) == (0, nameless["id"], "ann")
    assert polar.count("customer") == 1
    polar.state.pay(told["id"])
    run("sync")
    assert run("credits", "show", "ann")[1]["plan"] == "pro"
    code, told = run("checkout", "--plan", "pro", "--user", "ann")
    assert (code, polar.count("checkout")) == (5, 1)


def test_a_linked_customer_who_is_gone_or_anothers_buys_nothing(polar: PolarStandIn, run: Run) -> None:
    """Deleted, or since then given another user's id: a customer of the user's own is made."""
    gone, taken = (polar.state.add_customer(f"{name}@example.com") for name in ("gone", "taken"))
    run("sync")
    for each in (gone, taken):
        assert run("users", "link", f"polar:{each['id']}", "ann")[0] == 0
    gone["deleted_at"] = polar.state.stamp()
    taken["external_id"] = "bob"
    code, told = run("checkout", "--plan", "pro", "--user", "ann", "--email", "new@example.com")
    held = polar.state.objects["checkout"][told["id"]]
    assert code == 0
    assert polar.state.objects["customer"][held["customer_id"]]["external_id"] == "ann"


def test_wait_tells_whose_it_is(polar: PolarStandIn, run: Run) -> None:
    """Without --user, a buyer whom Polar knows as bob is told as bob."""
    polar.state.add_customer("bob@example.com", "bob")

    def buyer() -> None:
        while not polar.count("checkout"):
            time.sleep(0.05)
        with polar.lock:
            polar.state.pay(next(iter(polar.state.objects["checkout"])), email="bob@example.com")

    paying = threading.Thread(target=buyer)
    paying.start()
    code, told = run("checkout", "--plan", "pro", "--wait")
    paying.join()
    assert (code, told["user"], told["balance"]) == (0, "bob", 6000)


def test_without_a_date(polar: PolarStandIn, run: Run) -> None:
    """Only facts must be dated: links are made, plans compared; sync says what it lacks."""
    polar.dated = False
    assert run("checkout", "--plan", "pro", "--user", "ann", "--email", "a@example.com")[0] == 0
    assert run("portal", "ann")[0] == 0
    assert run("plans", "diff")[0] == 0
    assert bad(run)["clock"]["status"] == "warn"
    code, told = run("sync")
    assert (code, told["error"]["code"]) == (6, "polar_unavailable")
    assert run("credits", "list") == (0, {"users": []})


PROBES = {
    "organizations:read": "GET /v1/organizations/",
    "products:read": "GET /v1/products/?limit",
    "customers:read": "GET /v1/customers/",
    "customers:write": "PATCH /v1/customers/",
    "customer_sessions:write": "POST /v1/customer-sessions/",
    "checkouts:read": "GET /v1/checkouts/",
    "checkouts:write": "POST /v1/checkouts/",
    "subscriptions:read": "GET /v1/subscriptions/",
    "orders:read": "GET /v1/orders/",
    "refunds:read": "GET /v1/refunds/",
    "disputes:read": "GET /v1/disputes/",
    "webhooks:read": "GET /v1/webhooks/",
    "webhooks:write": "PATCH /v1/webhooks/",
}


def test_doctor_knows_every_scope(polar: PolarStandIn, run: Run) -> None:
    """Each that is lacking is named; asking makes and changes nothing. README lists the same."""
    assert set(PROBES) == set(SCOPES)
    before = json.dumps(polar.state.objects, sort_keys=True)
    with PolarApi(Transport(TOKEN, environment="sandbox", base_url=polar.url)) as api:
        assert api.lacking_scopes() == []
        for scope, request in PROBES.items():
            polar.scopes_lacking = {request}
            assert api.lacking_scopes() == [scope]
    polar.scopes_lacking = set(PROBES.values()) - {PROBES["products:read"]}
    assert all(scope in bad(run)["scopes"]["detail"] for scope in SCOPES if scope != "products:read")
    assert json.dumps(polar.state.objects, sort_keys=True) == before
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert [scope for scope in SCOPES if f"`{scope}`" not in readme] == []


def test_doctor_survives_a_probe_without_an_answer(polar: PolarStandIn, run: Run) -> None:
    """What cannot be asked is a finding of its own; the other checks go on."""
    run("webhooks", "register", URL)
    polar.misbehave("500", times=99, path="/v1/disputes/")
    code, told = run("doctor")
    assert code == 10
    named = {each["name"]: each["status"] for each in told["checks"]}
    assert named["scopes"] == named["secret"] == "fail"


@pytest.mark.parametrize("events", [["order.paid"], list(EVENTS)])
def test_doctor_leaves_others_endpoints_alone(
    events: list[str], polar: PolarStandIn, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another application's is not ours, however right it is, and no fix would change it."""
    other = polar.state.add_endpoint(url="https://other.example/hook", events=events)
    only = bad(run)["secret"]
    assert "If it is yours" in only["fix"]
    monkeypatch.setenv("POLARCREDITS_PUBLIC_URL", "https://mine.example")
    missing = bad(run)["endpoint"]
    assert "no webhook endpoint" in missing["detail"]
    assert missing["fix"].endswith(f"register {URL}")
    polar.state.add_endpoint(url="https://third.example/hook", events=events)
    monkeypatch.delenv("POLARCREDITS_PUBLIC_URL")
    assert "other.example" not in str(bad(run))
    monkeypatch.setenv("POLAR_WEBHOOK_SECRET", other["secret"])
    assert "secret" not in bad(run)
    mine = polar.state.add_endpoint(url=URL, events=["order.paid"])
    monkeypatch.setenv("POLARCREDITS_PUBLIC_URL", "https://mine.example")
    found = bad(run)
    assert mine["url"] in found["endpoint"]["detail"]
    assert found["secret"]["status"] == "fail"


def test_doctor_says_what_it_cannot_compare(polar: PolarStandIn, run: Run, database: Path) -> None:
    """A secret that Polar does not tell is no secret that is right."""
    run("webhooks", "register", URL)
    held = next(iter(polar.state.objects["endpoint"].values()))
    held["secret"] = ""
    (database.parent / ".env").write_text("POLARCREDITS_PUBLIC_URL=https://mine.example\n")
    secret = bad(run)["secret"]
    assert (secret["status"], "cannot be compared" in secret["detail"]) == ("warn", True)


@pytest.mark.parametrize(("late", "status"), [(20, "ok"), (40, "warn"), (200, "warn"), (300, "fail")])
def test_doctor_weighs_the_clock(late: int, status: str, polar: PolarStandIn, run: Run) -> None:
    """Half a minute may be chance; above four, deliveries would soon be refused."""
    polar.state.clock = datetime.now(UTC) + timedelta(seconds=late)
    told = {each["name"]: each["status"] for each in run("doctor")[1]["checks"]}
    assert told["clock"] == status


def test_doctor_names_the_fix_of_the_database(
    run: Run, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another environment, a file that is none, an old schema: each has its own."""

    def fix() -> str:
        checks = run("doctor", "--offline")[1]["checks"]
        return str(next(each["fix"] for each in checks if each["name"] == "database"))

    run("webhooks", "trigger", "purchase")
    monkeypatch.setenv("POLAR_ENVIRONMENT", "production")
    assert "POLAR_ENVIRONMENT" in fix()
    monkeypatch.delenv("POLAR_ENVIRONMENT")
    monkeypatch.setenv("POLARCREDITS_DATABASE_URL", "postgresql://nobody@127.0.0.1:9/none")
    assert "POLARCREDITS_DATABASE_URL" in fix()
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0000'")
    connection.close()
    monkeypatch.setenv("POLARCREDITS_DATABASE_URL", f"sqlite:///{database}")
    assert fix() == "polarcredits db upgrade"


@pytest.mark.parametrize("secret", ["my own #1 with ${HOME} and 'quotes' \\", 'a "b" $c `d`', "é=ü & more"])
def test_register_saves_what_can_be_read_back(
    secret: str, polar: PolarStandIn, run: Run, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the secret looks like, the configuration has it afterwards."""
    polar.state.add_endpoint(url=URL, events=list(EVENTS))["secret"] = secret
    saved = database.parent / ".env"
    saved.write_text(f"POLARCREDITS_DATABASE_URL=sqlite:///{database}\n")
    monkeypatch.delenv("POLAR_WEBHOOK_SECRET")
    assert run("webhooks", "register", URL)[0] == 0
    assert "secret" not in bad(run)
    saved.chmod(0o644)
    assert run("webhooks", "register", URL)[0] == 0
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    assert "secret" not in bad(run)


@pytest.mark.parametrize("secret", ["one, two", " blank", "line\nbreak"])
def test_register_refuses_what_no_setting_holds(
    secret: str, polar: PolarStandIn, run: Run, database: Path
) -> None:
    """A comma would make two of it; the file stays as it was."""
    polar.state.add_endpoint(url=URL, events=list(EVENTS))["secret"] = secret
    saved = database.parent / ".env"
    saved.write_text("OTHER=kept\n")
    code, told = run("webhooks", "register", URL)
    assert (code, told["error"]["code"]) == (7, "config")
    assert "comma" in told["error"]["message"]
    assert saved.read_text() == "OTHER=kept\n"


def test_since_hears_of_every_customer(polar: PolarStandIn, run: Run) -> None:
    """One who was deleted, and one who got an id, long after they were made."""
    then = datetime.now(UTC) - timedelta(days=60)
    ann, nameless = Story("ann", at=then), Story(None, at=then, seed="z")
    for each in (ann, nameless):
        each.pack("p")
        polar.state.load_story(each)
    polar.state.clock = datetime.now(UTC) - timedelta(days=1)
    run("sync")
    polar.state.clock = None
    customers = polar.state.objects["customer"]
    customers[ann.customer["id"]]["deleted_at"] = polar.state.stamp()
    customers[nameless.customer["id"]]["external_id"] = "zoe"
    told = run("sync", "--since", "2d")[1]
    assert {each["id"] for each in told["changed"] if each["kind"] == "customer"} == {
        ann.customer["id"],
        nameless.customer["id"],
    }
    assert run("users", "show", "ann")[1]["status"] == "closed"
    assert run("users", "show", "zoe")[0] == 0


def test_checked_counts_each_object_once(polar: PolarStandIn, run: Run) -> None:
    """A list that moves while it is read is read again, but has no more in it for that."""
    for number in range(150):
        polar.state.add_customer(f"{number}@example.com", f"user-{number}")

    def move(target: str) -> None:
        if "page=2" in target and polar.count("customer") == 150:
            polar.state.add_customer("new@example.com", "new")

    polar.on_request = move
    rehearsed = run("sync", "--dry-run")[1]["checked"]
    assert rehearsed["customers"] == 151
    assert run("sync")[1]["checked"] == rehearsed
    assert sum("customers/?" in each.target for each in polar.exchanges) == 4 + 2


def test_an_interrupt_is_told(polar: PolarStandIn, run: Run) -> None:
    """Ctrl-C: exit 130 and one JSON document."""
    begun: list[str] = []
    polar.on_request = begun.append
    polar.misbehave("timeout", times=9)
    process = subprocess.Popen(
        [sys.executable, "-m", "polarcredits", "sync", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while not begun and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=30)
    assert process.returncode == 130, error
    assert json.loads(out)["error"]["code"] == "interrupted"
    assert "Traceback" not in error


def test_sending_gives_up_on_a_dead_server() -> None:
    """A few events are tried in earnest; the rest is reported without waiting."""
    waited: list[float] = []
    with Sender("http://127.0.0.1:9/x", SECRET, sleep=waited.append) as sender:
        told = [sender.send(b"{}", id=str(number), type="order.paid") for number in range(9)]
    assert {each.status for each in told} == {"failed"}
    assert ["not sent" in (each.error or "") for each in told] == [False] * 3 + [True] * 6
    assert len(waited) == 3 * 3


def test_a_server_that_answers_is_asked_for_all(run: Run) -> None:
    """Bad answers in a row are no reason to leave out the rest."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            asked.append(self.headers["webhook-id"])
            self.send_response(400)
            self.send_header("content-length", "0")
            self.end_headers()

    run("webhooks", "trigger", "purchase", "--user", "ann")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    told = run("webhooks", "replay", "--all", "--to", f"http://127.0.0.1:{server.server_address[1]}/")[1]
    server.shutdown()
    server.server_close()
    thread.join()
    assert told["refused"] == len(asked) == len(told["events"]) > 5


def test_init_decides_nothing_about_packs(polar: PolarStandIn, run: Run) -> None:
    """How many credits a one-time product gives is not guessed: it is named as missing."""
    once = polar.state.add_product("Poster", interval=None)
    code, told = run("init", "--yes")
    assert code == 0
    assert once not in Path(told["config"]).read_text()
    assert any(once in each for each in told["missing"])


@pytest.mark.parametrize("where", ["environment", ".env"])
def test_init_makes_the_file_that_is_named(
    where: str, polar: PolarStandIn, run: Run, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """POLARCREDITS_CONFIG may name a file that is yet to be made; other commands want it there."""
    wanted = database.parent / "made" / "mine.toml"
    if where == "environment":
        monkeypatch.setenv("POLARCREDITS_CONFIG", str(wanted))
    else:
        (database.parent / ".env").write_text(f"POLARCREDITS_CONFIG={wanted}\n")
    assert run("plans")[0] == 7
    code, told = run("init", "--yes")
    assert (code, told["config"], wanted.exists()) == (0, str(wanted), True)
    assert run("plans")[0] == 0
    assert not (database.parent / "polarcredits.toml").exists()


def test_pull_compares_the_log_with_the_payload(polar: PolarStandIn, run: Run) -> None:
    """A row of one type with a payload of another is refused; other formats are not ours to read."""
    endpoint = polar.state.add_endpoint()["id"]
    events = Story("ann", at=datetime.now(UTC)).purchase(PRO)
    chat = polar.state.add_endpoint(url="https://chat.example/", format="slack")["id"]
    polar.state.add_delivery(chat, events[0], succeeded=True)
    paid = next(each for each in events if each["type"] == "order.paid")
    polar.state.add_delivery(endpoint, paid, succeeded=False)
    row = list(polar.state.objects["delivery"].values())[-1]
    row["webhook_event"]["type"] = "order.created"
    for options in ((), ("--dry-run",)):
        code, told = run("webhooks", "pull", *options)
        assert (code, told["refused"], len(told["events"])) == (9, 1, 1)
        assert "order.created" in told["events"][0]["error"]
    assert run("credits", "list") == (0, {"users": []})


@pytest.fixture
def two_plans(database: Path) -> None:
    (database.parent / "polarcredits.toml").write_text(
        "".join(
            f'[plans.{name}]\ncredits = {credits}\ninterval = "month"\nproduct_ids = ["p-{name}"]\n'
            for name, credits in (("max", 20_000), ("pro", 5_000))
        )
    )


@pytest.mark.usefixtures("two_plans")
@pytest.mark.parametrize(
    ("sequence", "options", "plans"),
    [
        ("upgrade", (), ("max",)),
        ("upgrade", ("--plan", "max"), ("max",)),
        ("downgrade", (), ("pro",)),
        ("downgrade", ("--plan", "pro"), ("pro",)),
    ],
)
def test_trigger_changes_plans(
    sequence: str, options: tuple[str, ...], plans: tuple[str, ...], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With or without a subscription before; an upgrade is charged for, a downgrade is not."""
    monkeypatch.delenv("POLAR_PRO_PRODUCT_ID")
    code, told = run("webhooks", "trigger", sequence, "--user", "ann", *options)
    assert (code, told["failed"], told["refused"]) == (0, 0, 0)
    assert run("credits", "show", "ann")[1]["plan"] in plans
    assert len(run("payments", "list")[1]["payments"]) == (2 if sequence == "upgrade" else 1)
    back = "downgrade" if sequence == "upgrade" else "upgrade"
    assert run("webhooks", "trigger", back, "--user", "ann")[0] == 0
    assert run("credits", "show", "ann")[1]["plan"] not in plans
    assert len(run("subscriptions", "list")[1]["subscriptions"]) == 1


@pytest.mark.parametrize("sequence", ["upgrade", "downgrade"])
def test_trigger_needs_another_plan(sequence: str, run: Run) -> None:
    """With one plan there is none to change to: exit 7, and nothing is told."""
    code, told = run("webhooks", "trigger", sequence, "--user", "ann")
    assert (code, told["error"]["code"]) == (7, "config")
    assert run("webhooks", "list")[1]["events"] == []


def test_users_who_are_dots(polar: PolarStandIn, run: Run) -> None:
    """No id of a user's leads to another address."""
    for user in (".", "..", "%2E%2E"):
        code, told = run("checkout", "--plan", "pro", "--user", user, "--email", f"{len(user)}@example.com")
        assert (code, told["user"]) == (0, user)
        assert run("portal", user)[0] == 0
        assert run("sync", user)[0] == 0
