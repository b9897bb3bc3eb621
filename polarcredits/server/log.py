"""A log of JSON lines on stderr that never makes anybody wait.

Lines go into a bounded queue; a thread of its own writes them. While the reader of stderr sleeps the
queue fills up, and what does not fit is dropped and counted.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
import traceback
from datetime import UTC, datetime

from polarcredits.periods import format_time

STDERR = 2
_MOST_LINES = 4096
_LONGEST = 300
_REPEATED_SECONDS = 1.0


class JsonLog:
    """Writes one JSON object a line."""

    def __init__(self, fd: int = STDERR, *, most: int = _MOST_LINES) -> None:
        self._refused = 0
        self._unwritten = 0
        self._fd = fd
        self._queue: queue.Queue[bytes | None] = queue.Queue(most)
        self._told = 0
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """How many lines found no room, or could not be written."""
        return self._refused + self._unwritten

    def write(self, event: str, *, level: str = "info", **fields: object) -> None:
        """Queue a line; returns at once, whatever becomes of it."""
        try:
            self._queue.put_nowait(json_line(event, level=level, **fields))
        except queue.Full:
            self._refused += 1

    def close(self, *, within: float = 1.0) -> None:
        """Write what is queued, for at most so many seconds."""
        until = time.monotonic() + within
        while time.monotonic() < until:
            try:
                self._queue.put_nowait(None)
            except queue.Full:
                time.sleep(0.01)
                continue
            self._thread.join(max(0.0, until - time.monotonic()))
            return

    def _write_all(self) -> None:
        while (line := self._queue.get()) is not None:
            lost = self.dropped - self._told
            if lost:
                line += json_line("log_lines_dropped", level="warning", lines=lost)
            if write_whole(self._fd, line):
                self._told += lost
            else:
                self._unwritten += 1


def json_line(event: str, *, level: str, **fields: object) -> bytes:
    """Return a line of the log: when, what, which process, and the fields."""
    line = {"time": format_time(datetime.now(UTC)), "level": level, "event": event, "pid": os.getpid()}
    return json.dumps({**line, **fields}, ensure_ascii=True, default=str).encode() + b"\n"


def write_whole(fd: int, data: bytes) -> bool:
    """Write all of *data*, however long that takes; False if that is impossible: no reader, no room."""
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            time.sleep(0.05)
        except OSError:
            return False
    return True


class LibraryLog(logging.Handler):
    """What libraries log, as lines of ours: of an error its kind and place, never its text.

    An error's text can hold what was being worked on: a payload, an e-mail address.
    """

    def __init__(self, log: JsonLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log
        self._last = ""
        self._silent_until = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record; the same again within a second says nothing new."""
        now = time.monotonic()
        said = f"{record.name} {record.getMessage()}"
        if said == self._last and now < self._silent_until:
            return
        self._last, self._silent_until = said, now + _REPEATED_SECONDS
        fields: dict[str, object] = {"logger": record.name}
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            fields |= {"error": type(error).__name__, "at": places(error)}
        message = record.getMessage().split("\n", 1)[0][:_LONGEST]
        self._log.write("library", level=record.levelname.lower(), message=message, **fields)


def places(error: BaseException) -> list[str]:
    """Return where *error* passed through, the innermost last."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    return [f"{os.path.basename(each.filename)}:{each.lineno} {each.name}" for each in frames]


def catch_library_logs(log: JsonLog) -> None:
    """Send everything that libraries log or warn of to *log*, and nowhere else."""
    logging.captureWarnings(True)
    root = logging.getLogger()
    root.handlers[:] = [LibraryLog(log)]
    root.setLevel(logging.WARNING)
