"""Position ids: where each prompt token stands, and where the answer begins."""

from collections.abc import Callable
from typing import Annotated, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, ValidationError

from vlmc.bundle.manifest import PositionSpec
from vlmc.errors import VlmcError
from vlmc.runtime.canvas import Canvas, canvas_positions
from vlmc.runtime.types import Prompt
from vlmc.schema import Frozen, Json, lookup

Options = TypeVar("Options", bound=Frozen)
Positions = tuple[NDArray[np.int64], int]


class NoOptions(Frozen):
    """A scheme without constants."""


class Xdrope(Frozen):
    """``axes``: how many there are; the last three are a picture's."""

    axes: Annotated[int, Field(ge=3)]


class Sequential(Frozen):
    """Tokens one after the other.

    Attributes:
        start: The first token's position.
        skipped: The id of a prompt's tokens that take no position of their own and have that
            before ``start``; answers count all.
    """

    start: NonNegativeInt = 0
    skipped: int | None = None


def prompt_positions(prompt: Prompt, spec: PositionSpec) -> Positions:
    """Positions of the prompt's tokens, and the position of the first generated one.

    Each later token stands one further, on every axis.

    Args:
        prompt: Token ids ``[L]``, spans and images.
        spec: The scheme, a row of ``POSITIONS``, and its options.

    Returns:
        int64 ``[L]``, or ``[3, L]`` (time, height, width) for M-RoPE and on a canvas, ``[axes, L]``
        for xdrope; and the next position.

    Raises:
        VlmcError: Unknown scheme or options, or a prompt whose images do not fit its spans.
    """
    return lookup(POSITIONS, spec.scheme, kind="position scheme", at="positions.scheme")(
        prompt, spec.options
    )


def position_axes(spec: PositionSpec) -> int:
    """Axes of a prompt's positions; 0: they are one row of numbers."""
    if spec.scheme in ("mrope", "canvas"):
        return 3
    return _checked(Xdrope, spec.options).axes if spec.scheme == "xdrope" else 0


def _sequential(prompt: Prompt, options: Json) -> Positions:
    found = _checked(Sequential, options)
    following = found.start + len(prompt.token_ids)
    if found.skipped is None:
        return np.arange(found.start, following, dtype=np.int64), following
    # As ``Kosmos2TextSinusoidalPositionalEmbedding.create_position_ids_from_input_ids``.
    placed = prompt.token_ids != found.skipped
    return np.cumsum(placed) * placed + (found.start - 1), following


def _mrope(prompt: Prompt, options: Json) -> Positions:
    """Three axes: transformers' ``Qwen2VLModel.get_rope_index`` for text and images.

    Text advances all three axes together. An image's tokens keep the time of its start and
    count rows and columns from there; the text after it goes on behind its longer side.
    """
    _checked(NoOptions, options)
    length = len(prompt.token_ids)
    positions = np.empty((3, length), dtype=np.int64)
    done = 0  # tokens placed
    here = 0  # position of the next token
    for span in prompt.spans:
        time, height, width = prompt.images[span.image].grid
        if time * height * width != span.length:
            raise VlmcError(
                f"an image of {time} x {height} x {width} feature rows has {span.length} "
                "placeholder tokens",
                at="positions",
            )
        text = span.start - done
        positions[:, done : span.start] = np.arange(here, here + text)
        here += text
        done = span.start + span.length
        grid = np.indices((time, height, width), dtype=np.int64).reshape(3, -1)
        positions[:, span.start : done] = grid + here
        here += max(height, width)
    positions[:, done:] = np.arange(here, here + length - done)
    following = int(positions.max()) + 1 if length else 0
    return positions, following


def _xdrope(prompt: Prompt, options: Json) -> Positions:
    """Several axes: transformers' ``HunYuanVLModel.get_rope_index``.

    Tokens count on along every axis, pictures' too. But the last three are column, row and number
    of its picture for what lies between a picture's first token and its last.
    """
    axes = _checked(Xdrope, options).axes
    length = len(prompt.token_ids)
    positions = np.tile(np.arange(length, dtype=np.int64), (axes, 1))
    for number, span in enumerate(prompt.spans):
        _, height, width = prompt.images[span.image].grid
        if height * (width + 1) + 2 != span.length:
            raise VlmcError(
                f"an image of {height} x {width} feature rows has {span.length} tokens",
                at="positions",
            )
        inside = slice(span.start + 1, span.start + span.length - 1)
        rows, columns = np.indices((height, width + 1), dtype=np.int64).reshape(2, -1)
        positions[-3, inside], positions[-2, inside] = columns, rows
        positions[-1, inside] = number
    following = int(positions.max()) + 1 if length else 0
    return positions, following


def _checked(schema: type[Options], options: Json) -> Options:
    try:
        return schema.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(key) for key in first["loc"])
        known = name in schema.model_fields
        problem = f"'{name}': {first['msg']}" if known else f"this scheme has no option '{name}'"
        raise VlmcError(problem, at="positions.options") from error


POSITIONS: dict[str, Callable[[Prompt, Json], Positions]] = {
    "sequential": _sequential,
    "mrope": _mrope,
    "xdrope": _xdrope,
    "canvas": lambda prompt, options: canvas_positions(prompt, _checked(Canvas, options)),
}
