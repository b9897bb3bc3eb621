"""Periods: cut without a gap, month ends right (docs/rules.md §4.1)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polarcredits.periods import (
    Interval,
    cut,
    format_time,
    from_micros,
    parse_duration,
    parse_time,
    to_micros,
)

TIMES = st.integers(0, 4_000_000_000_000_000).map(from_micros)
INTERVALS = st.sampled_from(["day", "week", "month", "year", "lifetime"])


@given(TIMES, st.integers(1, 800), INTERVALS)
def test_a_cut_covers_the_whole_without_a_gap(start: datetime, days: int, interval: Interval) -> None:
    """Half-open periods, one after another, from the start to the end."""
    end = start + timedelta(days=days)
    periods = cut(start, end, interval)
    assert (periods[0][0], periods[-1][1]) == (start, end)
    assert all(first[1] == second[0] for first, second in pairwise(periods))
    assert all(begin < finish for begin, finish in periods)


@pytest.mark.parametrize("day", [29, 30, 31])
@pytest.mark.parametrize("month", [1, 3, 5, 7, 8, 10, 12])
def test_month_ends_over_four_years(day: int, month: int) -> None:
    """Twelve allowances a year, none cut short: every month has its last day or the anchor."""
    start = datetime(2027, month, day, 9, tzinfo=UTC)
    for year in range(4):
        begins = [
            begin
            for begin, _ in cut(
                start.replace(year=start.year + year), start.replace(year=start.year + year + 1), "month"
            )
        ]
        assert len(begins) == 12
        for begin in begins:
            following = begin + timedelta(days=1)
            assert begin.day == day or (begin.day < day and following.day == 1)
        assert all(timedelta(days=28) <= b - a <= timedelta(days=31) for a, b in pairwise(begins))


def test_a_period_from_a_short_month_keeps_the_anchor_of_its_end() -> None:
    """28 February to 31 March belongs to a subscription of the 31st."""
    start, end = datetime(2027, 2, 28, tzinfo=UTC), datetime(2027, 3, 31, tzinfo=UTC)
    assert cut(start, end, "month") == [(start, end)]
    year = cut(start, datetime(2028, 2, 29, tzinfo=UTC), "month")
    assert [begin.day for begin, _ in year][:4] == [28, 29, 29, 29]


def test_a_rest_lengthens_the_last_period() -> None:
    """45 days of a weekly plan are five weeks and one of ten days."""
    start = datetime(2027, 4, 1, tzinfo=UTC)
    periods = cut(start, start + timedelta(days=45), "week")
    assert [(end - begin).days for begin, end in periods] == [7, 7, 7, 7, 7, 10]


def test_a_short_billing_period_is_one_allowance_period() -> None:
    """A trial week of a monthly plan."""
    start = datetime(2027, 4, 1, tzinfo=UTC)
    assert len(cut(start, start + timedelta(days=7), "month")) == 1


@given(TIMES)
def test_times_survive_storage_and_text(time: datetime) -> None:
    """Microseconds and RFC 3339 both keep every time."""
    assert from_micros(to_micros(time)) == time
    assert parse_time(format_time(time)) == time
    assert format_time(time).endswith("Z")


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2027-04-01", "2027-04-01T00:00:00", "9999-12-31T23:59:59-23:00"]
)
def test_times_without_a_zone_are_refused(text: str) -> None:
    """A time is aware or none."""
    with pytest.raises(ValueError, match="no time"):
        parse_time(text)


def test_durations() -> None:
    """`<n>` and one of s m h d w."""
    assert parse_duration("90m") == timedelta(minutes=90)
    assert parse_duration("2w") == timedelta(days=14)
    for text in ("", "1", "h", "1.5h", "-1h", "1y", "1 h", "999999999w"):
        with pytest.raises(ValueError, match="duration"):
            parse_duration(text)
