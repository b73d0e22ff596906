"""The chat of ``vlmc run`` at a terminal."""

import sys
from collections.abc import Callable
from pathlib import Path

from vlmc.cli.run import show
from vlmc.errors import VlmcError
from vlmc.runtime import Model, Request
from vlmc.schema import Json

HELP = "/image PATH adds a picture to the next question, /clear forgets, /quit leaves."

MakeRequest = Callable[[list[Json], list[Path]], Request]


def converse(model: Model, head: list[Json], pictures: list[Path], ask: MakeRequest) -> None:
    """Questions and answers until /quit, end of input, or Ctrl-C at the prompt.

    Ctrl-C during an answer stops that answer; what came of it stays in the chat.

    Args:
        model: Answers.
        head: Messages every chat begins with.
        pictures: Pictures of the first question.
        ask: Makes the request of messages and the files of their image parts.
    """
    _note(HELP)
    turns: list[Json] = list(head)
    files: list[Path] = []
    waiting = list(pictures)
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            _note("")
            return
        if line == "/quit":
            return
        if line == "/clear":
            turns, files, waiting = list(head), [], []
            continue
        if line.startswith("/image"):
            waiting += _picture(line.removeprefix("/image").strip())
            continue
        if line.startswith("/"):
            _note(HELP)
            continue
        if not line and not waiting:
            continue
        parts: list[Json] = [{"type": "image"} for _ in waiting]
        question: Json = {"role": "user", "content": [*parts, {"type": "text", "text": line}]}
        answer = _answer(model, ask, [*turns, question], [*files, *waiting])
        if answer is not None:
            reply: Json = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
            turns += [question, reply]
            files += waiting
            waiting = []


def _answer(model: Model, ask: MakeRequest, turns: list[Json], files: list[Path]) -> str | None:
    """Streams one answer; None when it was refused or stopped before it began."""
    pieces: list[str] = []
    try:
        with model.start(ask(turns, files)) as stream:
            for piece in stream:
                show(piece)
                pieces.append(piece)
    except VlmcError as error:
        _note(str(error))
        return None
    except KeyboardInterrupt:
        pass  # the answer ends here
    show("\n")
    return "".join(pieces) or None


def _picture(name: str) -> list[Path]:
    path = Path(name.strip("'\"")).expanduser()
    if not name or not path.is_file():
        _note(f"no such file: {name}" if name else HELP)
        return []
    return [path]


def _note(text: str) -> None:
    print(text, file=sys.stderr)
