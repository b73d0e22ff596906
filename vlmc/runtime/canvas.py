"""Positions on a canvas: a picture's slices lie beside each other, its whole under them all.

Mirrors ``MiniCPMV4_7Model.get_rope_index`` for text and pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt

from vlmc.errors import VlmcError
from vlmc.runtime.types import Prompt
from vlmc.schema import Frozen

Shape = tuple[int, int]
Run = tuple[int, int]  # where a whole's or a slice's tokens begin, and end


class Canvas(Frozen):
    """Ids of the marks that have a place on the canvas; None: the prompt has no such."""

    image_start: NonNegativeInt | None
    image_end: NonNegativeInt | None
    slice_start: NonNegativeInt | None
    slice_end: NonNegativeInt | None
    newline: NonNegativeInt | None

    def marks(self) -> frozenset[int]:
        """All of them."""
        return frozenset(id for id in self.model_dump().values() if id is not None)


@dataclass
class _Frame:
    """A picture: its whole, and the slices behind it."""

    whole: Run
    slices: list[Run] = field(default_factory=list)
    end: int = 0  # behind the marks that close it


def canvas_positions(prompt: Prompt, options: Canvas) -> tuple[NDArray[np.int64], int]:
    """Time, row and column of every token, int64 [3, L], and the next position.

    Args:
        prompt: Its pictures say the shapes of their parts.
        options: The marks.

    Raises:
        VlmcError: The prompt has other parts of pictures than they say.
    """
    ids = prompt.token_ids.tolist()
    found = np.tile(np.arange(len(ids), dtype=np.int64), (3, 1))
    groups = _groups(prompt, ids, options)
    parts = [part for group in groups for one in group for part in (one.whole, *one.slices)]
    shapes = [shape for image in prompt.images for shape in image.shapes]
    if [end - start for start, end in parts] != [rows * columns for rows, columns in shapes]:
        raise VlmcError("the parts of its images are not those of the prompt", at="positions")
    waiting = iter(shapes)
    here = done = 0  # the next position, and how many tokens have theirs
    for group in groups:
        for number, frame in enumerate(group):
            start = frame.whole[0] - 1
            between = max(start - done, 0)  # none, where only marks are
            found[:, done : done + between] = np.arange(here, here + between)
            # Behind what parts two frames of a group, one position stays free.
            here += between + (1 if number and between else 0)
            own = [next(waiting) for _ in range(1 + len(frame.slices))]
            here = _place(found, frame, own, here)
            done = frame.end
    found[:, done:] = np.arange(here, here + len(ids) - done)
    return found, int(found.max()) + 1 if ids else 0


def _groups(prompt: Prompt, ids: list[int], options: Canvas) -> list[list[_Frame]]:
    """Pictures, those together between which there are marks alone.

    Mirrors ``_group_visual_frames``.
    """
    marks = options.marks()
    groups: list[list[_Frame]] = []
    end = 0
    for shown, run in groupby(range(len(ids)), lambda at: bool(prompt.feature_index[at] >= 0)):
        if not shown:
            continue
        places = list(run)
        part = places[0], places[-1] + 1
        sliced = options.slice_start is not None and ids[part[0] - 1] == options.slice_start
        if groups and sliced:
            groups[-1][-1].slices.append(part)
        elif groups and marks.issuperset(ids[end : part[0] - 1]):
            groups[-1].append(_Frame(part))
        else:
            groups.append([_Frame(part)])
        end = part[1]
    for group in groups:
        for frame in group:
            frame.end = frame.slices[-1][1] if frame.slices else frame.whole[1]
            while frame.end < len(ids) and ids[frame.end] in marks:
                frame.end += 1
    return groups


def _place(found: NDArray[np.int64], frame: _Frame, shapes: list[Shape], origin: int) -> int:
    """Writes the positions of a picture's tokens and marks; the next position behind it."""
    (start, end), slices = frame.whole, frame.slices
    height, width = shapes[0]
    across = _columns(slices)
    tall = wide = 0
    if slices:
        tall, wide = shapes[1]
        height, width = len(slices) // across * tall, across * wide
    found[:, start - 1 : frame.end] = origin
    found[1:, start - 1] = max(origin - 1, 0)  # a mark just outside
    if end < frame.end:
        found[1:, end] = origin + height, origin + width
    found[1, start:end], found[2, start:end] = _spread(shapes[0], (height, width)) + origin
    for number, ((first, last), shape) in enumerate(zip(slices, shapes[1:], strict=True)):
        corner = origin + number // across * tall, origin + number % across * wide
        found[1:, first - 1] = corner
        if last < frame.end:
            found[1:, last] = corner[0] + shape[0] - 1, corner[1] + shape[1] - 1
        rows, columns = _spread(shape, shape)
        found[1, first:last], found[2, first:last] = rows + corner[0], columns + corner[1]
        following = slices[number + 1][0] if number + 1 < len(slices) else last
        if following - last > 2:  # the end of a row of slices
            edge = origin + (number // across + 1) * tall - 1, origin + across * wide
            found[1, last + 1 : following - 1] = edge[0]
            found[2, last + 1 : following - 1] = edge[1]
    return origin + max(height, width) + 1


def _columns(slices: list[Run]) -> int:
    """Slices in a row: more than two marks end one."""
    gaps = [after[0] - before[1] for before, after in pairwise(slices)]
    found = next((number + 1 for number, gap in enumerate(gaps) if gap > 2), len(slices))
    return found if found and len(slices) % found == 0 else len(slices)


def _spread(shape: Shape, over: Shape) -> NDArray[np.int64]:
    """Row and column of each of ``shape``'s places, spread over a larger grid: [2, places]."""
    ends = [_steps(count, size) for count, size in zip(shape, over, strict=True)]
    return np.stack(np.meshgrid(*ends, indexing="ij")).reshape(2, -1)


def _steps(count: int, size: int) -> NDArray[np.int64]:
    """``torch.linspace(0, size - 1, count).round()``, from either end to the middle as there."""
    last = np.float32(size - 1)
    step = last / np.float32(max(count - 1, 1))
    along = np.arange(count, dtype=np.float32)
    from_end = last - step * (np.float32(count - 1) - along)
    made = np.where(np.arange(count) < count // 2, step * along, from_end)
    return np.round(made if count > 1 else np.zeros(1)).astype(np.int64)
