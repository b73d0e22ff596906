"""A prompt's one picture, ahead of its text."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from vlmc.bundle.manifest import PictureAhead
from vlmc.errors import VlmcError
from vlmc.runtime.types import ImageSpan, PreparedImage, Prompt


def picture_ids(
    encode: Callable[[str], list[int]], ahead: PictureAhead, id: int, rows: int, columns: int
) -> NDArray[np.int64]:
    """Token ids of a picture of ``rows`` x ``columns`` feature rows, its marks among them.

    Mirrors ``FuyuProcessor.__call__``, which encodes them as a text of their own and drops the
    first token: the space that a SentencePiece vocabulary puts before any text.

    Args:
        encode: The tokenizer, adding nothing of its own.
        ahead: The words.
        id: Of the image token.
        rows: Of patches.
        columns: Of patches.

    Raises:
        VlmcError: Another number of image tokens comes out, as the processor too would find.
    """
    text = (ahead.image * columns + ahead.row_end) * rows + ahead.end
    ids = np.array(encode(text)[1:], dtype=np.int64)
    if (count := int((ids == id).sum())) != rows * columns:
        raise VlmcError(
            f"the tokenizer makes {count} image tokens of {rows * columns} times '{ahead.image}'",
            hint="Fuyu's processor drops the first token of a picture, which must be a space",
        )
    return ids


def behind_picture(
    encode: Callable[[str], list[int]],
    ahead: PictureAhead,
    id: int,
    images: Sequence[PreparedImage],
    text: Sequence[int],
) -> Prompt:
    """The prompt of a picture and a text.

    Args:
        encode: As for ``picture_ids``.
        ahead: The words.
        id: Of the image token.
        images: The picture.
        text: Ids of the text and its end.

    Raises:
        VlmcError: There is more than one picture; or as ``picture_ids``.
    """
    if len(images) > 1:
        most = "this model takes one image in a prompt"
        raise VlmcError(most, at="messages", hint=f"got {len(images)}")
    _, rows, columns = images[0].grid
    picture = picture_ids(encode, ahead, id, rows, columns)
    ids = np.concatenate([picture, np.asarray(text, dtype=np.int64)])
    index = np.full(len(ids), -1, dtype=np.int64)
    places = np.flatnonzero(picture == id)
    index[places] = np.arange(len(places))
    span = ImageSpan(int(places[0]), int(places[-1] - places[0]) + 1, 0)
    return Prompt(ids, index, (span,), (images[0],))
