"""What code that is not ours raises, told as one line that a user can act on."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from vlmc.errors import VlmcError


def in_a_line(error: BaseException) -> str:
    """An exception's class, and the first line of what it says."""
    said = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


@contextmanager
def run_by_transformers() -> Iterator[None]:
    """Whatever transformers' processors and models raise inside is the checkpoint's, or theirs.

    What a chat template refuses stays as it is: that is the question's. So does an exception that
    never went through transformers.

    Raises:
        VlmcError: transformers could not run the checkpoint.
    """
    from jinja2 import TemplateError

    try:
        yield
    except (VlmcError, TemplateError):
        raise
    except Exception as error:
        if not _through_transformers(error.__traceback__):
            raise
        raise VlmcError(
            f"transformers could not run this checkpoint: {in_a_line(error)}",
            at="config.json",
            hint="checks: {reference: off} builds without comparing to transformers"
            " (and quantize: {calibration: off}, where it names a file)",
        ) from error


def _through_transformers(traceback: TracebackType | None) -> bool:
    while traceback is not None:
        if traceback.tb_frame.f_globals.get("__name__", "").startswith("transformers."):
            return True
        traceback = traceback.tb_next
    return False
