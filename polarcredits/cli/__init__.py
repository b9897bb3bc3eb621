"""The command line: a thin skin over the library. This module imports little; `app` has the commands."""

from __future__ import annotations

import atexit
import gc
import json
import sys
from typing import NoReturn

from polarcredits import __version__


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with the code of the contract."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index("--") if "--" in given else len(given)
    as_json = "--json" in given[:end]
    given = [word for word in given[:end] if word != "--json"] + given[end:]
    if given == ["--version"]:
        tell_version(as_json)
        sys.exit(0)
    if arguments is None:
        _collect_less_often()
    from polarcredits.cli.app import run

    sys.exit(run(given, as_json=as_json))


def _collect_less_often() -> None:
    """Look for garbage less often, and not once more at the very end: a third of a short command's time.

    Imports make some hundred thousand objects that live as long as the process.
    """
    gc.set_threshold(100_000, 20, 20)
    atexit.register(gc.freeze)


def tell_version(as_json: bool) -> None:
    """Print the version."""
    print(json.dumps({"version": __version__}) if as_json else f"polarcredits {__version__}")
