"""What all tests rely on, however they were started."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Hear the signals that nohup and background jobs ignore: the programs that tests start inherit this."""
    for number, handler in (
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGINT, signal.default_int_handler),
    ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)
