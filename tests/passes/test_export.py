"""Sizes that programs are traced with."""

from vlmc.bundle.manifest import TensorSpec
from vlmc.passes.export import GraphSpec, trace_sizes


def test_a_size_that_is_always_a_multiple_is_traced_as_one():
    pixels = TensorSpec(name="pixel_values", dtype="float32", shape=("patches", 3))
    for side, expected in ((1, 54), (2, 56), (3, 54), (4, 64), (8, 128)):
        given = {"sizes": {"patches": 54}, "multiples": {"patches": side**2}}
        spec = GraphSpec("vision", (pixels,), (), **given)
        assert trace_sizes(spec)["patches"] == expected
