"""The command line: a thin skin over the library. This module imports little; `app` has the commands."""

from __future__ import annotations

import atexit
import gc
import io
import json
import os
import sys
from contextlib import suppress
from typing import NoReturn

from polarcredits import __version__


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with the code of the contract."""
    _open_streams()
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except OSError as error:
        code = _untold(error)
    sys.exit(code)


def _open_streams() -> None:
    """Put the null device where a standard stream is closed, else the next file opened were the stream.

    What a terminal cannot show is shown by its number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _run(arguments: list[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index("--") if "--" in given else len(given)
    as_json = "--json" in given[:end]
    given = [word for word in given[:end] if word != "--json"] + given[end:]
    if given == ["--version"]:
        tell_version(as_json)
        return 0
    if arguments is None:
        _collect_less_often()
    from polarcredits.cli.app import run

    return run(given, as_json=as_json)


def _untold(error: OSError) -> int:
    """Say that stdout takes no answer, unless its reader only went away; what was done stays done."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not isinstance(error, BrokenPipeError):
        with suppress(OSError):
            print(
                f"Error: The answer cannot be written: {error.strerror}. What was done stays done.",
                file=sys.stderr,
            )
    return 1


def _collect_less_often() -> None:
    """Look for garbage less often, and not once more at the very end: a third of a short command's time.

    Imports make some hundred thousand objects that live as long as the process.
    """
    gc.set_threshold(100_000, 20, 20)
    atexit.register(gc.freeze)


def tell_version(as_json: bool) -> None:
    """Print the version."""
    print(json.dumps({"version": __version__}) if as_json else f"polarcredits {__version__}")
