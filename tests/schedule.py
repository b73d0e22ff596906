"""Which tests run in one process: those of one checkpoint, and those of one file.

What the first test of a checkpoint makes, an export above all, then serves the others. This is
``--dist loadgroup``, which pytest-xdist 3.8 writes into node ids that pytest 9.2 no longer reads.
"""

from __future__ import annotations

import functools

from xdist.scheduler import LoadScopeScheduling

BUILDS = "tests/build/"


class ByCheckpoint(LoadScopeScheduling):
    """Hands whole groups to workers, the largest first."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def group_of(nodeid: str) -> str:
    """The checkpoint that a test of builds is given, by its id; of other tests their file."""
    file, _, rest = nodeid.partition("::")
    given = rest.partition("[")[2].removesuffix("]")
    if not (file.startswith(BUILDS) and given):
        return file
    # A name may be part of another, and of words that are not its own.
    return next((name for name in _names() if f"-{name}-" in f"-{given}-"), file)


@functools.cache
def _names() -> list[str]:
    """Every checkpoint's, the longest first."""
    from tests.build.variants import SPECIAL, VARIANTS
    from tests.checkpoints import MAKERS

    return sorted({*MAKERS, *VARIANTS, *SPECIAL}, key=len, reverse=True)
