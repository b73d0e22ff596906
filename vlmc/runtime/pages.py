"""Memory in pages of 2 MiB, where the system gives such to a process that asks."""

import mmap
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray


def zeros_in_large_pages(size: int) -> NDArray[np.uint8]:
    """Zeros ``[size]``; a page becomes resident once it is written, or read.

    On systems without large pages, or that keep them to themselves, pages are small.

    Raises:
        MemoryError: There is no room for so many.
    """
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None or not size:
        return np.zeros(size, np.uint8)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(str(error)) from error
    with suppress(OSError):
        memory.madvise(advice)
    return np.frombuffer(memory, np.uint8)
