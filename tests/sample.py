"""A sample of tests that have many cases: some of each, the same in every run."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable


def one_in(n: int, node_ids: Iterable[str]) -> set[str]:
    """Of each test with more than ``n`` cases one in ``n``, rounded up; of others all.

    Cases are drawn by a checksum of their names. Every ``n``-th one would always be of the same
    value, where a parameter has ``n``.
    """
    tests = defaultdict(list)
    for node_id in node_ids:
        tests[node_id.partition("[")[0]].append(node_id)
    kept: set[str] = set()
    for cases in tests.values():
        drawn = sorted(cases, key=lambda name: (zlib.crc32(name.encode()), name))
        kept.update(drawn[: -(-len(cases) // n)] if len(cases) > n else cases)
    return kept
