"""The programs of the speed table are whole: nothing here looks at a time."""

from __future__ import annotations

from dataclasses import replace

from tests.benchmarks import s5_growth, s10_verify
from tests.benchmarks.__main__ import WIDTH, lines, rows
from tests.benchmarks.harness import Measurement, folder


def test_each_row_says_what_it_is() -> None:
    """A row is found by its file's name, and has a name, a goal and a program."""
    found = rows()
    assert {"s5_growth", "s9_startup", "s10_verify"} <= set(found)
    for name, row in found.items():
        assert name.startswith(f"{row.NAME.lower()}_")
        assert row.GOAL
        assert callable(row.run)


def test_growth_and_verify_yield_their_rows() -> None:
    """On a ledger of a few users."""
    with (
        folder() as place,
        s5_growth.built(place / "a.db", 100) as a,
        s5_growth.built(place / "b.db", 200) as b,
    ):
        grown = s5_growth.compare(a, b, 200, count=3, rounds=1)
        checked = s10_verify.compare(b, 200, rounds=1)
    assert [row.what.split(":")[0] for row in grown] == ["deduct", "credits history", "credits show"]
    assert [row.met is None for row in checked] == [False, True]


def test_a_line_fits_a_terminal() -> None:
    """However long its words and figures are."""
    short = Measurement(
        row="S1", what="short", unit="1/s", ours=1, baseline=2, ratio=0.5, goal="≥ 0.85", met=False
    )
    long = replace(short, what="a description " * 5, ours=123456789.0, baseline=123456789.0, ratio=1234.5)
    for measurement in (short, long):
        assert all(len(line) <= WIDTH for line in lines(measurement))
