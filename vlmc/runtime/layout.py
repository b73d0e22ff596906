"""The text that an image becomes in a prompt, and which feature rows its tokens take."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlmc.bundle.manifest import ImageLayout, PromptSpec
from vlmc.runtime.injection import BREAK
from vlmc.runtime.types import ImageSpan, PreparedImage


def image_text(layout: ImageLayout, rows: int, columns: int, token: str, *, index: int = 0) -> str:
    """The text of a prompt's image ``index``, with one image token for each tile."""
    start = layout.numbered.replace("{index}", str(index)) + layout.start
    tiles, number = "", 0
    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            tiles += layout.between if column > 1 else ""
            number += 1
            tiles += layout.tile.format(row=row, column=column, number=number)
            tiles += token + (layout.tile_end if row > layout.first_rows else layout.first_end)
        tiles += layout.row_end + (layout.between_rows if row < rows else "")
        tiles += layout.after_first if row == layout.first_rows else ""
    if not rows and layout.alone is not None:
        return start + layout.alone + token + layout.alone_end + layout.close
    whole = (layout.before_whole if rows else "") + layout.whole + token + layout.end
    if layout.after_whole is None:
        return start + tiles + whole + layout.close
    return start + whole + (layout.after_whole + tiles if rows else "") + layout.close


def join_edges(text: str, edge: str) -> str:
    """A prompt whose images end and begin with ``edge``, as ``Idefics2Processor`` writes it."""
    text = text.replace(edge + edge, edge)
    # A user's text may begin with BREAK.
    return re.sub(rf"{re.escape(edge)}(?={BREAK}*[^\s<{BREAK}])", lambda _: f"{edge} ", text)


def feature_index(
    ids: NDArray[np.int64],
    taken: NDArray[np.bool],
    images: Sequence[PreparedImage],
    spans: Sequence[ImageSpan],
    spec: PromptSpec,
) -> NDArray[np.int64]:
    """The row of each token in the images' concatenated features, -1 for text, -2 beside images.

    Args:
        ids: The prompt, placeholders expanded, int64 [L].
        taken: Which of them stand for rows, bool [L].
        images: Its images, in order.
        spans: Their places.
        spec: Which tokens take rows.

    Returns:
        int64 [L]. Marks take rows of the image they stand at, those before all images the first's.
    """
    index = np.where(np.isin(ids, spec.beside_token_ids), -2, np.int64(-1))
    if not images:
        return index
    ends = np.cumsum([image.rows for image in images], dtype=np.int64)
    marks = np.array([image.marks for image in images])
    own = zip(ends - [image.rows for image in images], ends - marks, strict=True)
    index[taken] = np.concatenate([np.arange(*rows) for rows in own])
    # The token right before an image is that image's.
    starts = [span.start - 1 for span in spans[1:]]
    for at, mark in enumerate(spec.mark_token_ids):
        places = np.flatnonzero(ids == mark)
        owners = np.searchsorted(starts, places, side="right")
        index[places] = (ends - marks)[owners] + at
    return index
