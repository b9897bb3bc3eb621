"""What every row shares: interleaved rounds, medians, the machine's facts, a table and JSON."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One line of the table; `ours` and `baseline` in *unit*, `met` None where there is no goal."""

    row: str
    what: str
    unit: str
    ours: float
    baseline: float
    ratio: float
    goal: str
    met: bool | None


def interleaved(programs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run all programs in turn, every other round backwards; return each one's figures by round."""
    figures: dict[str, list[float]] = {name: [] for name in programs}
    names = list(programs)
    for _ in range(rounds):
        for name in names:
            figures[name].append(programs[name]())
        names.reverse()
    return figures


def at_least(
    row: str, what: str, ours: Sequence[float], baseline: Sequence[float], goal: float | None
) -> Measurement:
    """Compare rates (more is better): the median of the rounds' ratios."""
    ratio = _ratio(ours, baseline)
    return Measurement(
        row=row,
        what=what,
        unit="1/s",
        ours=statistics.median(ours),
        baseline=statistics.median(baseline),
        ratio=ratio,
        goal="" if goal is None else f"≥ {goal:g}",
        met=None if goal is None else ratio >= goal,
    )


def at_most(
    row: str, what: str, ours: Sequence[float], baseline: Sequence[float], goal: float | None
) -> Measurement:
    """Compare times in seconds (less is better): the median of the rounds' ratios."""
    ratio = _ratio(ours, baseline)
    return Measurement(
        row=row,
        what=what,
        unit="s",
        ours=statistics.median(ours),
        baseline=statistics.median(baseline),
        ratio=ratio,
        goal="" if goal is None else f"≤ {goal:g}",
        met=None if goal is None else ratio <= goal,
    )


def _ratio(ours: Sequence[float], baseline: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, baseline, strict=True))


def rate(count: int, work: Callable[[], object]) -> float:
    """Run *work*, which does *count* things, and return how many a second."""
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


def seconds(work: Callable[[], object]) -> float:
    """Run *work* and return how long it took."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@contextmanager
def folder() -> Iterator[Path]:
    """Give a new folder on the file system that is measured (BENCHMARK_DIR, else the temporary one)."""
    with tempfile.TemporaryDirectory(prefix="bench", dir=os.environ.get("BENCHMARK_DIR")) as name:
        yield Path(name)


def machine() -> dict[str, object]:
    """Return what the figures depend on; `fsync_us` is a 4 KiB append made durable."""
    with folder() as place, (place / "probe").open("wb", buffering=0) as probe:
        times = []
        for _ in range(50):
            began = time.perf_counter()
            probe.write(bytes(4096))
            os.fdatasync(probe.fileno())
            times.append(time.perf_counter() - began)
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": sys.version.split()[0],
        "sqlite": sqlite3.sqlite_version,
        "fsync_us": round(statistics.median(times) * 1e6),
    }


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def table(measurements: Sequence[Measurement]) -> str:
    """Return the measurements as text for people."""
    lines = [f"{'':4} {'what':58} {'ours':>11} {'baseline':>11} {'ratio':>7} {'goal':>8}"]
    for m in measurements:
        verdict = {True: "met", False: "MISSED", None: ""}[m.met]
        lines.append(
            f"{m.row:4} {m.what:58} {_number(m.ours):>11} {_number(m.baseline):>11}"
            f" {m.ratio:>7.2f} {m.goal:>8} {verdict}"
        )
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def as_json(measurements: Sequence[Measurement], facts: Mapping[str, object]) -> str:
    """Return the measurements and the machine's facts as one JSON document."""
    return json.dumps({"machine": facts, "measurements": [asdict(m) for m in measurements]}, indent=2)
