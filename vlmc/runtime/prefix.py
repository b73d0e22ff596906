"""Names for what a prompt's chunks write, so that a beginning seen before is not run again.

Only whole chunks are taken over, so the work done is what it would have been without, and the
answer is the same to the last bit.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlmc.runtime.features import Chunk, needed_images
from vlmc.runtime.types import Array, PreparedImage, Prompt


def chunk_keys(
    prompt: Prompt, positions: NDArray[np.int64], chunks: Sequence[Chunk]
) -> tuple[bytes, ...]:
    """One key per chunk: equal keys, equal cache up to that chunk's end.

    A key covers all that the chunk and those before it read: the cut, the tokens, their
    positions and feature rows, and every input of the images.
    """
    digests: dict[int, bytes] = {}
    keys: list[bytes] = []
    for chunk in chunks:
        whole = hashlib.sha256(keys[-1] if keys else b"")
        whole.update(f"{chunk.start} {chunk.stop} {chunk.image}".encode())
        here = slice(chunk.start, chunk.stop)
        for array in (prompt.token_ids, prompt.feature_index, positions):
            _add(whole, array[..., here])
        for image in needed_images(prompt, chunk):
            if image not in digests:
                digests[image] = _image_digest(prompt.images[image])
            whole.update(digests[image])
        keys.append(whole.digest())
    return tuple(keys)


def _image_digest(image: PreparedImage) -> bytes:
    whole = hashlib.sha256()
    for name in sorted(image.tensors):
        whole.update(f"{len(name)} {name}".encode())
        _add(whole, image.tensors[name])
    return whole.digest()


def _add(whole: "hashlib._Hash", array: Array) -> None:
    # Sizes go first: two arrays of the same bytes and other shapes must not meet.
    whole.update(f"{array.dtype} {array.shape}".encode())
    whole.update(np.ascontiguousarray(array).data)
