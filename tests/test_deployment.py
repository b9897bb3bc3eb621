"""What docs/deployment.md and the files beside it name is there."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from polarcredits.server import bodies, protocol, webhooks, worker
from polarcredits.server.observed import ROUTES

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "deployment.md").read_text("utf-8")


def unit(name: str) -> configparser.ConfigParser:
    """Read a unit of systemd's."""
    parsed = configparser.ConfigParser(interpolation=None, strict=False)
    parsed.read_string((DOCS / "deploy" / name).read_text("utf-8"))
    return parsed


@pytest.mark.parametrize("name", ["polarcredits.service", "polarcredits-refill.service"])
def test_units_run_commands_that_exist(name: str) -> None:
    """Each ExecStart is a command with its options."""
    _, command, *arguments = shlex.split(unit(name)["Service"]["ExecStart"])
    helped = subprocess.run(
        [sys.executable, "-m", "polarcredits", command, "--help"], capture_output=True, text=True, check=True
    ).stdout
    for option in (each for each in arguments if each.startswith("--")):
        assert option in (*helped.split(), "--json")


def test_the_unit_gives_the_server_time_to_stop() -> None:
    """systemd waits for longer than the server takes."""
    service = unit("polarcredits.service")["Service"]
    assert int(service["TimeoutStopSec"]) > worker.GRACE_SECONDS + 5
    assert int(service["LimitNOFILE"]) > protocol.MOST_CONNECTIONS


@pytest.mark.parametrize("name", ["nginx.conf", "Caddyfile"])
def test_proxies_pass_on_what_the_world_needs(name: str) -> None:
    """Every route but those of the operator."""
    config = (DOCS / "deploy" / name).read_text("utf-8")
    for route in (*ROUTES, "/billing/"):
        operators = route in ("/healthz", "/readyz", "/metrics")
        assert bool(re.search(rf"{re.escape(route)}[ *\n]", config)) is not operators, route


def test_nginx_writes_no_addresses_down() -> None:
    """Those of the pages hold links: no log of requests, for any of them, and of errors only the worst."""
    config = (DOCS / "deploy" / "nginx.conf").read_text("utf-8")
    before_locations = config.partition("location")[0]
    assert re.findall(r"access_log [^;]*;", config) == ["access_log off;"]
    assert "access_log off;" in before_locations
    assert re.search(r"error_log \S+ crit;", before_locations)


@pytest.mark.parametrize("name", ["polarcredits.service", "polarcredits-refill.service"])
def test_units_find_the_settings_where_people_do(name: str) -> None:
    """In the `.env` of their working directory, as cron does."""
    service = unit(name)["Service"]
    assert "environmentfile" not in service
    assert f"`{service['WorkingDirectory']}/.env`" in TEXT
    assert f"cd {service['WorkingDirectory']} && /opt/polarcredits/bin/polarcredits refill" in TEXT


def test_limits_are_those_of_the_program() -> None:
    """The table of limits."""
    told = " ".join(TEXT.split())
    assert bodies.BODY_LIMIT == 1024 * 1024
    for phrase in (
        f"{bodies.BODY_SECONDS:.0f} s to arrive (408)",
        f"{protocol.HEAD_BYTES // 1024} KiB, and {protocol.HEAD_SECONDS:.0f} s to arrive",
        f"| an answer that is not read | {protocol.READ_SECONDS:.0f} s |",
        f"| idle connection | {protocol.KEEP_ALIVE_SECONDS} s |",
        f"| connections | {protocol.MOST_CONNECTIONS:,} a worker |",
        f"| wait for a lock of the database | {worker.BUSY_SECONDS:.0f} s;",
        f"| answer to a delivery | {webhooks.ANSWER_SECONDS:.0f} s, then 503",
        f"| stopping | {worker.GRACE_SECONDS} s for what is in flight",
    ):
        assert phrase in told
