"""Image tokens repeated as often as their features are many."""

from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from vlmc.bundle.manifest import PromptSpec
from vlmc.errors import VlmcError
from vlmc.runtime.layout import feature_index
from vlmc.runtime.types import ImageSpan, PreparedImage, Prompt

_TAKEN = -1  # stands for an image's token until its id is known


def expand(
    ids: NDArray[np.int64],
    images: Sequence[PreparedImage],
    runs: Sequence[int],
    spec: PromptSpec,
    frame: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> Prompt:
    """A prompt whose image tokens stand for one feature row each.

    Args:
        ids: The prompt's int64 ids, one image token for each tile or picture.
        images: In order.
        runs: How many image tokens stand for each image.
        spec: How the model is asked.
        frame: Ids before and behind each image's tokens.

    Raises:
        VlmcError: The prompt has places for more images, or fewer; or an id that no embedding has.
    """
    places = np.flatnonzero(ids == spec.image_token_id)
    check_places(len(places), sum(runs))
    before, behind = frame
    texts = np.split(ids, places)
    pieces, spans, length = [texts[0]], [], len(texts[0])
    rest = iter(texts[1:])
    for index, (image, count) in enumerate(zip(images, runs, strict=True)):
        each = image.runs or (image.tokens // count,) * count
        spread = [
            part
            for taken, text in zip(each, islice(rest, count), strict=True)
            for part in (np.full(taken, _TAKEN, dtype=np.int64), text[1:])
        ]
        framed = [before, *spread[:-1], behind, spread[-1]]
        inside = sum(map(len, spread[:-1]))
        spans.append(ImageSpan(length + len(before), inside, index))
        pieces += framed
        length += sum(map(len, framed))
    expanded = np.concatenate(pieces)
    taken = expanded == _TAKEN
    first = spec.first_image_id
    counted = [np.arange(image.tokens) for image in images]
    expanded[taken] = spec.image_token_id if first is None else first + np.concatenate(counted)
    check_vocabulary(expanded, spec)
    rows = feature_index(expanded, taken, images, spans, spec)
    return Prompt(expanded, rows, tuple(spans), tuple(images))


def check_vocabulary(ids: NDArray[np.int64], spec: PromptSpec) -> None:
    """Refuses ids that the model has no embedding of.

    Raises:
        VlmcError: There is one.
    """
    if len(ids) and int(ids.max()) >= spec.vocab_size:
        most = f"the model has {spec.vocab_size} tokens"
        raise VlmcError(f"the tokenizer gives id {ids.max()}; {most}")


def check_places(places: int, images: int) -> None:
    """Refuses a prompt that has not one place for each image.

    Raises:
        VlmcError: Their numbers differ.
    """
    if places != images:
        raise VlmcError(
            f"the prompt has {places} places for images, for {images} images",
            at="messages",
            hint="the model's chat template decides where an image is taken",
        )
