"""The commands' common top, and the one place where errors become exits."""

from __future__ import annotations

import contextlib
import errno
import io
import json
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from polarcredits.cli import tell_version
from polarcredits.cli.context import options
from polarcredits.cli.lazy import LazyGroup
from polarcredits.cli.output import emit, hint, say
from polarcredits.errors import PolarCreditsError

_UNWRITABLE = {errno.EPIPE, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""What writing to stdout may fail with: a reader that is gone, a disk that is full."""

app = typer.Typer(
    name="polarcredits",
    cls=LazyGroup,
    help="Sell API credits through Polar, and keep a ledger that you can trust.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        tell_version(options.json)
        raise typer.Exit


@app.callback()
def _global(
    config: Annotated[Path | None, typer.Option(help="The polarcredits.toml to use.")] = None,
    database: Annotated[
        str | None, typer.Option(help="The database: sqlite:///FILE or postgresql://…")
    ] = None,
    actor: Annotated[
        str | None, typer.Option(help="Who is written on entries (default: the system user).")
    ] = None,
    verbose: Annotated[bool, typer.Option(help="Show tracebacks of bugs.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Take the options that come before the command; --json may stand anywhere."""
    options.config = config
    options.database = database
    options.actor = actor
    options.verbose = verbose


def run(given: list[str], *, as_json: bool) -> int:
    """Run a command; return the exit code of the contract. Raises OSError if stdout takes no answer."""
    options.json = as_json
    unreadable = next((word for word in given if not _is_text(word)), None)
    if unreadable is not None:
        return _fail("invalid_input", f"The argument {unreadable!r} is not UTF-8 text.", 5, {})
    if options.json and "--help" in given[: given.index("--") if "--" in given else None]:
        return _help_as_json(given)
    return _outcome(given)


def _help_as_json(given: list[str]) -> int:
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        code = _outcome(given)
    text = shown.getvalue()
    say(json.dumps({"help": text}, ensure_ascii=False) if code == 0 else text.rstrip())
    return code


def _is_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _outcome(given: list[str]) -> int:
    try:
        code = typer.main.get_command(app).main(given, prog_name="polarcredits", standalone_mode=False)
    except PolarCreditsError as error:
        return _fail(error.code, error.message, error.exit_code, error.fields)
    except TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError" and not options.json:
            hint(str(error))
            return 2
        return _fail("usage", _usage(error), 2, {})
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted", "Interrupted.", 130, {})
    except OSError as error:
        if error.errno in _UNWRITABLE and error.filename is None:
            raise
        return _bug(error)
    except (ArithmeticError, AssertionError, LookupError, RuntimeError) as error:
        return _bug(error)
    except (AttributeError, NameError, TypeError, ValueError, ImportError) as error:
        return _bug(error)
    return code if isinstance(code, int) else 0


def _usage(error: TyperException) -> str:
    tell = getattr(error, "format_message", None)
    message = str(tell() if tell else error).strip()
    return message or "Say which command; see: polarcredits --help"


def _bug(error: Exception) -> int:
    if options.verbose:
        import traceback

        traceback.print_exception(error)
    return _fail(
        "internal",
        f"This is a bug: {type(error).__name__}: {error}. Run with --verbose for more.",
        1,
        {},
    )


def _fail(code: str, message: str, exit_code: int, fields: dict[str, object]) -> int:
    line = " ".join(message.split())
    document = {"error": {"code": code, "message": line, **fields}}
    emit(document, lambda: hint(f"Error: {line}"))
    return exit_code
