"""The command line: one table of commands, one place that turns errors into exit codes."""

import atexit
import errno
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, NoReturn

import typer
from typer.core import TyperGroup

from vlmc import __version__
from vlmc.errors import VlmcError
from vlmc.schema import lookup

# Each command is the function of its name in the file of its name, imported when it is used.
COMMANDS = {
    "build": "Build bundles from recipes.",
    "run": "Answer one prompt, or chat.",
    "check": "Validate a recipe and print its plan; no torch, no weights.",
    "inspect": "Show what is in a bundle.",
    "verify": "Check a bundle's files and answers on this machine.",
    "bench": "Measure a bundle, stage by stage.",
    "demo": "Build the packaged demo model and ask it about a picture.",
    "models": "List the model families.",
}

INTERRUPTED = 130
# What standard output may say of itself.
_UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class _Commands(TyperGroup):
    """The group whose commands are the rows of ``COMMANDS``."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return list(COMMANDS)

    def get_command(self, ctx: typer.Context, cmd_name: str):  # type: ignore[no-untyped-def,override]
        lookup(COMMANDS, cmd_name, kind="command", at="vlmc")
        module = importlib.import_module(f"vlmc.cli.{cmd_name}")
        app = _app()
        app.command(cmd_name)(getattr(module, cmd_name))
        return typer.main.get_command(app)

    def format_commands(self, ctx, formatter) -> None:  # type: ignore[no-untyped-def]
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _app(group: type[TyperGroup] = TyperGroup) -> typer.Typer:
    return typer.Typer(
        cls=group, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
    )


def _print_version(asked: bool) -> None:
    if asked:
        print(f"vlmc {__version__}")
        raise typer.Exit()


def _vlmc(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """An ahead-of-time compiler for vision-language models."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: Words after ``vlmc``; None takes the process's own.

    Returns:
        The exit code: 0 done, 2 a user's mistake, 130 interrupted, 1 anything else that is said
        in one line. A bug is raised, and keeps its traceback.

    Raises:
        SystemExit: The process was told to end (SIGTERM, SIGHUP).
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    app = _app(_Commands)
    app.callback()(_vlmc)
    command = typer.main.get_command(app)
    try:
        with _ending_tidily():
            code = command.main(args=words or ["--help"], prog_name="vlmc", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except VlmcError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except typer.TyperException as error:
        print(f"error: {error.format_message()}\n  see 'vlmc COMMAND --help'", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except OSError as error:
        if error.errno not in _UNWRITABLE or error.filename is not None:
            raise
        # Python flushes once more as it ends: give it somewhere to write.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno != errno.EPIPE:  # the reader went away
            print(f"error: cannot write the output: {error.strerror}", file=sys.stderr)
        return 1
    if code == INTERRUPTED:
        print("interrupted", file=sys.stderr)
    return code if isinstance(code, int) else 0


def script() -> NoReturn:
    """The process ``vlmc``: ``main``, and the end.

    What succeeded is on the disk and said: the interpreter is not asked to free, object by object,
    what an export left in memory, which takes it up to two seconds.
    """
    code = main()
    if code == 0:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody reads it, or it was closed
                if stream is not None:  # started without
                    stream.flush()
        os._exit(code)
    sys.exit(code)


@contextmanager
def _ending_tidily() -> Iterator[None]:
    """Has signals that end a process unwind it first: what a build has begun is removed."""
    caught: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, lambda given, frame: sys.exit(128 + given))
                caught.append(number)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, signal.SIG_DFL)
