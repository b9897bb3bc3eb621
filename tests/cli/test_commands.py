"""The contract of the command line: exit codes, JSON, and refusals that change nothing."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from polarcredits import __version__
from polarcredits.cli import main
from polarcredits.cli.lazy import COMMANDS, load
from tests.cli.conftest import Run

DELIVERIES = Path(__file__).parent.parent / "deliveries"


def rows(database: Path) -> list[tuple[object, ...]]:
    """Return everything that a refusal must leave alone."""
    found: list[tuple[object, ...]] = []
    with sqlite3.connect(database) as connection:
        for table in ("credit_balances", "credit_transactions", "grants", "holds", "accounts"):
            found += connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
    connection.close()
    return found


REFUSED: list[tuple[list[str], int, str]] = [
    (["credits", "show", "nobody"], 3, "not_found"),
    (["credits", "explain", "nobody"], 3, "not_found"),
    (["credits", "history", "nobody"], 3, "not_found"),
    (["credits", "deduct", "nobody"], 3, "not_found"),
    (["credits", "grant", "nobody", "5"], 3, "not_found"),
    (["credits", "deduct", "alice", "1011"], 4, "insufficient_credits"),
    (["credits", "hold", "alice", "1011"], 4, "insufficient_credits"),
    (["credits", "grant", "alice", "0"], 5, "invalid_input"),
    (["credits", "grant", "alice", "9223372036854775808"], 5, "invalid_input"),
    (["credits", "deduct", "alice", "NaN"], 5, "invalid_input"),
    (["credits", "deduct", "alice", "1.5"], 5, "invalid_input"),
    (["credits", "deduct", "alice", "--quantity", "0"], 5, "invalid_input"),
    (["credits", "deduct", "alice", "-5"], 2, "usage"),
    (["credits", "deduct", "alice", "1", "--meta", "novalue"], 5, "invalid_input"),
    (["credits", "deduct", "alice", "1", "--at", "2020-01-01T00:00:00Z"], 5, "invalid_input"),
    (["credits", "deduct", "alice", "1", "--at", "yesterday"], 5, "invalid_input"),
    (["credits", "grant", "alice", "11", "--idempotency-key", "k"], 5, "key_reused"),
    (["credits", "deduct", "alice", "10", "--idempotency-key", "k"], 5, "key_reused"),
    (["credits", "grant", "alice", "5", "--expires-in", "30x"], 5, "invalid_input"),
    (["credits", "grant", "alice", "5", "--expires-in", "\u0661d"], 5, "invalid_input"),
    (["credits", "grant", "alice", "5", "--expires-at", "2020-01-01T00:00:00Z"], 5, "invalid_input"),
    (["credits", "hold", "alice", "5", "--ttl", "25h"], 5, "invalid_input"),
    (["credits", "reverse", "txn_9_9"], 3, "not_found"),
    (["credits", "reverse", "nonsense"], 3, "not_found"),
    (["credits", "reverse", "txn_1_1"], 5, "invalid_input"),
    (["credits", "capture", "hold_none"], 3, "not_found"),
    (["credits", "release", "hold_none"], 3, "not_found"),
    (["credits", "list", "--plan", "gold"], 3, "not_found"),
    (["credits", "grant", "alice", "5", "--expires-in", "99999999w"], 5, "invalid_input"),
    (["credits", "history", "alice", "--type", "gift"], 5, "invalid_input"),
    (["webhooks", "list", "--status", "lost"], 5, "invalid_input"),
    (["webhooks", "list", "--user", "nobody"], 3, "not_found"),
    (["users", "add", ""], 5, "invalid_input"),
    (["users", "add", " alice"], 5, "invalid_input"),
    (["users", "add", "a\x07b"], 5, "invalid_input"),
    (["users", "add", "polar:c1"], 5, "invalid_input"),
    (["users", "add", "x" * 256], 5, "invalid_input"),
    (["users", "link", "polar:c1", "alice"], 3, "not_found"),
    (["users", "import", "no-such-file.csv"], 5, "invalid_input"),
    (["users", "import", "."], 5, "invalid_input"),
    (["webhooks", "ingest", "no-such-file.json"], 5, "invalid_input"),
    (["webhooks", "show", "none"], 3, "not_found"),
    (["webhooks", "retry"], 2, "usage"),
    (["subscriptions", "show", "none"], 3, "not_found"),
    (["refill", "--user", "nobody"], 3, "not_found"),
    (["nonsense"], 2, "usage"),
    (["credits", "deduct"], 2, "usage"),
]


@pytest.mark.parametrize(("arguments", "exit_code", "code"), REFUSED)
def test_a_refusal_says_why_and_changes_nothing(
    arguments: list[str], exit_code: int, code: str, run: Run, database: Path
) -> None:
    """Each wrong input has the exit code and error of the contract."""
    assert run("credits", "grant", "alice", "10", "--create", "--idempotency-key", "k")[0] == 0
    before = rows(database)
    ended, document = run(*arguments)
    assert (ended, document["error"]["code"]) == (exit_code, code)
    assert document["error"]["message"]
    assert rows(database) == before


def test_insufficient_credits_tells_the_numbers(run: Run) -> None:
    """§5.2: the error tells what was required and what is available."""
    run("users", "add", "alice")
    _, document = run("credits", "deduct", "alice", "5000")
    assert (document["error"]["required"], document["error"]["available"]) == (5000, 1000)


def test_the_whole_way_of_a_purchase(run: Run) -> None:
    """A real purchase gives plan pro and 5,000 + 1,000 credits, once."""
    file = str(DELIVERIES / "alice-purchase.jsonl")
    code, report = run("webhooks", "ingest", file)
    assert code == 0
    assert report["failed"] == report["refused"] == report["duplicates"] == 0
    code, again = run("webhooks", "ingest", file)
    assert (code, again["applied"], again["duplicates"]) == (0, 0, len(report["events"]))
    _, shown = run("credits", "show", "user_alice")
    assert (shown["plan"], shown["status"], shown["balance"]) == ("pro", "active", 6000)
    assert [(g["source"], g["amount"], g["used"]) for g in shown["grants"]] == [
        ("allowance", 5000, 0),
        ("lifetime", 1000, 0),
    ]
    assert run("subscriptions", "list", "--user", "user_alice")[1]["subscriptions"][0]["plan"] == "pro"
    payment = run("payments", "list")[1]["payments"][0]
    assert (payment["amount_cents"], payment["refunded_cents"]) == (2000, 0)
    assert run("webhooks", "replay", "--all")[1]["failed"] == 0
    assert run("credits", "show", "user_alice")[1]["balance"] == 6000
    assert run("ledger", "verify")[1]["ok"] is True


def test_explain_adds_up(run: Run) -> None:
    """The movements of all grants add up to the balance, and each names its cause."""
    run("webhooks", "ingest", str(DELIVERIES / "gina-1-pack.jsonl"))
    run("webhooks", "ingest", str(DELIVERIES / "gina-2-pack-again.jsonl"))
    run("webhooks", "ingest", str(DELIVERIES / "gina-3-pack-fully-refunded.jsonl"))
    run("credits", "deduct", "user_gina", "300")
    _, receipt = run("credits", "deduct", "user_gina", "20")
    run("credits", "reverse", receipt["transaction"]["id"])
    _, why = run("credits", "explain", "user_gina")
    moved = [line for grant in why["grants"] for line in grant["movements"]]
    assert sum(line["amount"] for line in moved) == why["balance"] == 1000 - 300
    assert all(line["cause"] for line in moved)


def test_the_environment_is_stamped(run: Run, monkeypatch: pytest.MonkeyPatch, database: Path) -> None:
    """Sandbox events keep a database for the sandbox."""
    run("webhooks", "ingest", str(DELIVERIES / "alice-purchase.jsonl"))
    before = rows(database)
    monkeypatch.setenv("POLAR_ENVIRONMENT", "production")
    code, document = run("webhooks", "ingest", str(DELIVERIES / "carol-1-purchase.jsonl"))
    assert (code, document["error"]["code"]) == (7, "config")
    assert rows(database) == before


def test_a_wrong_secret_refuses_every_delivery(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several, all refused: exit 9 and the report; nobody becomes known."""
    monkeypatch.setenv("POLAR_WEBHOOK_SECRET", "whsec_something_else_entirely")
    code, report = run("webhooks", "ingest", str(DELIVERIES / "alice-purchase.jsonl"))
    assert (code, report["applied"]) == (9, 0)
    assert report["refused"] == len(report["events"])
    assert run("users", "list")[1] == {"users": []}


def test_a_bare_payload_needs_unsigned(run: Run, tmp_path: Path) -> None:
    """A payload without proof is taken only on request, and then once."""
    bare = tmp_path / "bare.json"
    payload = {
        "type": "customer.created",
        "timestamp": "2026-11-23T05:00:00Z",
        "data": {"id": "c1", "external_id": "bea", "email": "b@example.com"},
    }
    bare.write_text(json.dumps(payload))
    code, document = run("webhooks", "ingest", str(bare))
    assert (code, document["error"]["code"]) == (5, "invalid_input")
    code, report = run("webhooks", "ingest", str(bare), "--unsigned")
    assert (code, report["applied"]) == (0, 1)
    assert report["events"][0]["id"].startswith("sha256:")
    assert run("webhooks", "ingest", str(bare), "--unsigned")[1]["duplicates"] == 1
    assert run("users", "show", "bea")[1]["polar_customer_ids"] == ["c1"]


def test_a_failed_event_is_kept_and_shown(run: Run, tmp_path: Path) -> None:
    """§8.4: what cannot be applied is kept with its error; one alone is exit 9."""
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps({"type": "order.paid", "timestamp": None, "data": {"id": "o1"}}))
    code, report = run("webhooks", "ingest", str(bare), "--unsigned")
    assert (code, report["failed"]) == (9, 1)
    listed = run("webhooks", "list", "--status", "failed")[1]["events"]
    assert [(event["attempts"], event["dead"]) for event in listed] == [(1, False)]
    assert listed[0]["next_attempt_at"] > listed[0]["received_at"]
    assert run("webhooks", "list", "--status", "dead")[1]["events"] == []
    for _ in range(9):
        code, report = run("webhooks", "retry", "--all")
        assert (code, report["failed"]) == (9, 1)
    for status in ("dead", "failed"):
        (dead,) = run("webhooks", "list", "--status", status)[1]["events"]
        assert (dead["status"], dead["attempts"], dead["dead"]) == ("failed", 10, True)
        assert dead["next_attempt_at"] is None
    assert run("webhooks", "show", listed[0]["id"])[1]["payload"]["data"] == {"id": "o1"}


def test_holds_by_hand(run: Run) -> None:
    """Hold, capture a part, release: the contract's documents."""
    run("users", "add", "alice")
    _, placed = run("credits", "hold", "alice", "50")
    assert (placed["hold"]["status"], placed["available"]) == ("open", 950)
    _, captured = run("credits", "capture", placed["hold"]["id"], "31")
    assert captured["hold"]["status"] == "captured"
    assert (captured["hold"]["captured"], captured["balance"], captured["available"]) == (31, 969, 969)
    code, refused = run("credits", "capture", placed["hold"]["id"])
    assert (code, refused["error"]["code"]) == (5, "hold_closed")
    _, second = run("credits", "hold", "alice", "9")
    assert run("credits", "release", second["hold"]["id"])[1]["hold"]["status"] == "released"


def test_import_reports_by_line(run: Run, tmp_path: Path) -> None:
    """Existing users keep their credits; a broken line stops nobody else's."""
    run("credits", "grant", "alice", "10", "--create")
    csv = tmp_path / "users.csv"
    csv.write_text("id,email\nalice,a@example.com\nbob,\n ,x\nbob,\n")
    code, report = run("users", "import", str(csv))
    assert code == 9
    assert (report["added"], report["updated"], report["unchanged"]) == (1, 1, 1)
    assert [failure["line"] for failure in report["failed"]] == [4]
    assert run("credits", "show", "alice")[1]["balance"] == 1010
    csv.write_text("id,phone\nx,1\n")
    assert run("users", "import", str(csv))[0] == 5


def test_dry_runs_change_nothing(run: Run, database: Path, tmp_path: Path) -> None:
    """The same report, rolled back."""
    run("users", "add", "alice")
    before = rows(database)
    file = str(DELIVERIES / "carol-1-purchase.jsonl")
    assert run("webhooks", "ingest", file, "--dry-run")[1]["failed"] == 0
    lines = tmp_path / "users.jsonl"
    lines.write_text('{"id": "bob"}\n')
    assert run("users", "import", str(lines), "--dry-run")[1]["added"] == 1
    run("refill", "--at", "2030-01-01T00:00:00Z", "--dry-run")
    assert rows(database) == before


def test_a_tampered_balance_is_found(run: Run, database: Path) -> None:
    """§6.2: `ledger verify` names the user and the difference."""
    run("users", "add", "alice")
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE credit_balances SET balance = balance + 7")
    connection.close()
    code, found = run("ledger", "verify")
    assert (code, found["ok"]) == (10, False)
    assert {problem["user"] for problem in found["problems"]} == {"alice"}
    assert any("+7" in problem["detail"] for problem in found["problems"])


@pytest.mark.parametrize("revision", ["0000", "9999"])
def test_a_database_of_another_version_is_refused(revision: str, run: Run, database: Path) -> None:
    """Behind or ahead: exit 8, naming what mends it."""
    run("users", "add", "alice")
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    connection.close()
    code, document = run("credits", "show", "alice")
    assert (code, document["error"]["code"]) == (8, "database")
    wanted = "newer" if revision == "9999" else "polarcredits db upgrade"
    assert wanted in document["error"]["message"]


@pytest.mark.parametrize("url", ["mysql://u:pa55@h/x", "sqlite://", "nonsense"])
def test_other_databases_are_a_config_error(url: str, run: Run) -> None:
    """The error names the setting and never a password."""
    code, document = run("--database", url, "credits", "list")
    assert (code, document["error"]["code"]) == (7, "config")
    assert "pa55" not in json.dumps(document)


def test_an_unreachable_postgresql_is_a_database_error(run: Run) -> None:
    """Exit 8, without the password."""
    code, document = run("--database", "postgresql://u:pa55@127.0.0.1:1/x", "credits", "list")
    assert (code, document["error"]["code"]) == (8, "database")
    assert "pa55" not in json.dumps(document)


def test_files_are_private(run: Run, database: Path) -> None:
    """Every SQLite file that we make has mode 0600."""
    run("users", "add", "alice")
    code, document = run("db", "backup", str(database.parent / "copy.db"))
    assert (code, document["up_to_date"], document["current"]) == (0, True, document["head"])
    files = list(database.parent.glob("*.db*"))
    assert len(files) >= 2
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {"0o600"}


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    """`--help` loads neither sqlmodel nor polar; `credits show` never polar."""
    program = (
        "import sys\n"
        "from polarcredits.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(sorted({'sqlmodel', 'polar', 'sqlalchemy', 'rich'} & set(sys.modules)), file=sys.stderr)"
    )
    for arguments, wanted in (
        (["--help"], "[]"),
        (["credits", "show", "--help"], "[]"),
        (["checkout", "--help"], "[]"),
        (["webhooks", "register", "--help"], "[]"),
        (["--database", "sqlite:///x.db", "credits", "show", "nobody"], "polar"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
        )
        last = done.stderr.strip().splitlines()[-1]
        if wanted == "[]":
            assert last == "[]"
        else:
            assert f"'{wanted}'" not in last


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command's help ends with an example that begins with its own name."""

    def walk(command: Any, path: list[str]) -> None:
        for name, child in getattr(command, "commands", {}).items():
            walk(child, [*path, name])
        if not hasattr(command, "commands"):
            assert f"Example: polarcredits {' '.join(path)}" in (command.help or ""), path

    for name in COMMANDS:
        walk(load(name), [name])
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("polarcredits ")


def test_help_and_version_are_documents_too(run: Run) -> None:
    """With --json, stdout is one JSON document and nothing else."""
    assert run("--version") == (0, {"version": __version__})
    code, document = run("credits", "show", "--help")
    assert (code, list(document)) == (0, ["help"])
    assert "Example: polarcredits credits show alice" in document["help"]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code"),
    [
        (["credits", "show", "\udcff"], 5, "invalid_input"),
        (["users", "add", "alice", "--name", "\udcff"], 5, "invalid_input"),
        (["users", "add", "alice", "--name", "a\x01"], 5, "invalid_input"),
        (["credits", "history", "alice", "--limit", "99999999999999999999"], 2, "usage"),
        (["credits", "hold", "alice", "5", "--at", "9999-12-31T23:59:59Z"], 5, "invalid_input"),
        (["credits", "grant", "polar:c1", "5", "--create"], 5, "invalid_input"),
        (["--database", "postgresql://u:p@h:notaport/d", "users", "list"], 8, "database"),
        (["--database", "postgresql://u:p@127.0.0.1:1/d", "users", "list"], 8, "database"),
    ],
)
def test_odd_input_is_refused_and_changes_nothing(
    arguments: list[str], exit_code: int, code: str, run: Run, database: Path
) -> None:
    """Bytes that are no text, numbers beyond reason, addresses that lead nowhere."""
    assert run("users", "add", "alice")[0] == 0
    before = rows(database)
    ended, document = run(*arguments)
    assert (ended, document["error"]["code"]) == (exit_code, code)
    assert ":p@" not in json.dumps(document)
    assert rows(database) == before


def test_a_database_of_one_environment_refuses_the_other(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sandbox purchases never become production credits: reads and spending refuse too."""
    assert run("webhooks", "ingest", str(sorted(DELIVERIES.glob("*.jsonl"))[0]))[0] == 0
    user = run("users", "list")[1]["users"][0]["id"]
    monkeypatch.setenv("POLAR_ENVIRONMENT", "production")
    for arguments in (["credits", "show", user], ["credits", "deduct", user], ["refill"]):
        code, document = run(*arguments)
        assert (code, document["error"]["code"]) == (7, "config")


def test_a_dry_run_gives_the_same_report(run: Run, database: Path, tmp_path: Path) -> None:
    """Deliveries that come twice in one file are duplicates in a rehearsal, too."""
    file = tmp_path / "twice.jsonl"
    file.write_bytes(sorted(DELIVERIES.glob("*.jsonl"))[0].read_bytes() * 2)
    run("users", "add", "alice")
    before = rows(database)
    rehearsed = run("webhooks", "ingest", str(file), "--dry-run")
    assert rows(database) == before
    assert rehearsed == run("webhooks", "ingest", str(file))
    assert rehearsed[1]["duplicates"] > 0


def test_import_takes_lines_as_json_does(run: Run, tmp_path: Path) -> None:
    """A line separator inside a string ends no line; half a surrogate pair fails its own line only."""
    file = tmp_path / "users.jsonl"
    lines = ['{"id": "ann", "name": "a\u2028b"}', '{"id": "bob", "name": "\\ud800"}', '{"id": "cid"}']
    file.write_text("\n".join(lines), encoding="utf-8")
    _, report = run("users", "import", str(file))
    assert (report["added"], [failure["line"] for failure in report["failed"]]) == (1, [1, 2])


def test_history_by_time_and_type(run: Run) -> None:
    """`--since` is inclusive, `--until` exclusive, `--limit` takes the newest."""
    run("users", "add", "alice")
    for day in ("02", "03", "04"):
        run("credits", "deduct", "alice", day, "--at", f"2099-01-{day}T00:00:00Z")
    span = ("--since", "2099-01-02T00:00:00Z", "--until", "2099-01-04T00:00:00Z")
    _, document = run("credits", "history", "alice", *span)
    assert [entry["amount"] for entry in document["transactions"]] == [-3, -2]
    _, document = run("credits", "history", "alice", "--type", "deduct", "--limit", "1")
    assert [entry["amount"] for entry in document["transactions"]] == [-4]


def test_history_as_a_plot(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Bars of the balance, oldest first, the highest 60 wide."""
    run("users", "add", "alice")
    run("credits", "deduct", "alice", "500")
    with pytest.raises(SystemExit) as ended:
        main(["credits", "history", "alice", "--plot"])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0
    assert [(line.split()[0], line.count("█")) for line in lines] == [("1,000", 60), ("500", 30)]


def test_replay_takes_what_its_filters_name(run: Run) -> None:
    """By id, by type and by when it was received; nothing moves, as nothing was missed."""
    run("webhooks", "ingest", str(sorted(DELIVERIES.glob("*.jsonl"))[0]))
    stored = run("webhooks", "list", "--limit", "1000")[1]["events"]
    kind = "order.paid"
    paid = {event["id"] for event in stored if event["type"] == kind}
    assert 0 < len(paid) < len(stored)
    for arguments, wanted in (
        (["--type", kind], paid),
        ([stored[0]["id"]], {stored[0]["id"]}),
        (["--since", "2020-01-01T00:00:00Z"], {event["id"] for event in stored}),
        (["--until", "2020-01-01T00:00:00Z"], set()),
    ):
        code, report = run("webhooks", "replay", *arguments)
        assert (code, report["failed"], {event["id"] for event in report["events"]}) == (0, 0, wanted)
    assert run("webhooks", "replay", "no-such-event")[1]["error"]["code"] == "not_found"
    assert run("ledger", "verify")[1]["ok"]


def test_an_event_with_half_a_character(run: Run, database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In its data it can be shown again; in its type the element is refused, and the others are taken."""
    whole = {"type": "foo.bar", "timestamp": "2026-11-01T00:00:00Z", "data": {"x": "\ud800"}}
    for name, event in (
        ("data", whole),
        ("type", whole | {"type": "x\ud800"}),
        ("nul", whole | {"type": "x\0"}),
    ):
        (database.parent / f"{name}.json").write_text(json.dumps(event))
    files = [str(database.parent / f"{name}.json") for name in ("data", "type", "nul")]
    code, report = run("webhooks", "ingest", "--unsigned", *files)
    assert (code, report["ignored"], report["refused"]) == (9, 1, 2)
    (stored,) = run("webhooks", "list")[1]["events"]
    assert run("webhooks", "show", stored["id"])[1]["payload"] == whole
    with pytest.raises(SystemExit) as ended:
        main(["webhooks", "show", stored["id"]])
    assert (ended.value.code, "ud800" in capsys.readouterr().out) == (0, True)


def test_a_file_that_is_no_database(run: Run, database: Path) -> None:
    """Exit 8, with what is wrong and where to look; the file stays as it is."""
    database.write_bytes(b"no database at all" * 100)
    code, document = run("credits", "list")
    assert (code, document["error"]["code"]) == (8, "database")
    assert "The file is no SQLite database" in document["error"]["message"]
    assert "POLARCREDITS_DATABASE_URL" in document["error"]["message"]
    assert database.read_bytes() == b"no database at all" * 100
