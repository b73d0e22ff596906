"""Programs whose weights stay where they are mapped: which they are, and how little they hold."""

from __future__ import annotations

import mmap
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from vlmc.backends.onnxruntime import in_place
from vlmc.backends.onnxruntime.native import DOMAIN

HELPER = onnx.helper


class Mapped:
    """A session that reads a file it has mapped, as an engine does its weights, a few times."""

    kernels = portable = ""

    def __init__(self, path: Path, looks: int = 200) -> None:
        with path.open("rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
        self.path, self.looks = path, looks
        self.held: list[int] = []

    def run(self, feeds, into=None):
        total = int(np.frombuffer(self.map, np.uint8).sum())
        for _ in range(self.looks):
            self.held.append(held(self.path))
            if self.held[-1] == 0:
                break
            time.sleep(0.01)
        return {"sum": np.array(total)}


def held(path: Path) -> int:
    """KiB of a file's mapping that count as this process's."""
    text = Path("/proc/self/smaps").read_text()
    found = re.findall(rf"{re.escape(str(path))}\n(?:.*\n)*?Rss: +(\d+) kB", text)
    return sum(int(size) for size in found)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_mapped_pages_are_given_back_and_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "some weights.bin"
    data = os.urandom(4 << 20)
    path.write_bytes(data)
    session = Mapped(path)
    monkeypatch.setattr(in_place, "HELD_BYTES", 0)
    other = Mapped(path, looks=20)
    other.run({})
    assert min(other.held) > 0  # nobody gives anything back
    del other
    found = in_place.InPlaceSession(session, [path]).run_all([({}, {})] * 2)
    assert [int(one["sum"]) for one in found] == [sum(data)] * 2
    assert session.held[-1] == 0
    assert held(path) == 0
    assert session.map[:] == data


def program(path: Path, *nodes: onnx.NodeProto, size: int) -> Path:
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[size // 4])
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "weights/w.bin"), ("offset", "0"), ("length", str(size))):
        weight.external_data.add(key=key, value=value)
    given = HELPER.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None])
    made = HELPER.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None])
    graph = HELPER.make_graph(list(nodes), "g", [given], [made], [weight])
    onnx.save(HELPER.make_model(graph), path)
    return path


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (HELPER.make_node("LinearFloat", ["x", "w"], ["y"], domain=DOMAIN), True),
        (HELPER.make_node("Gather", ["w", "x"], ["y"]), True),
        (HELPER.make_node("MatMul", ["x", "w"], ["y"]), False),
        (HELPER.make_node("LinearFloat", ["x", "w"], ["y"], domain="com.microsoft"), False),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_weights_that_the_engine_itself_multiplies_with_are_copied(
    tmp_path: Path, node: onnx.NodeProto, expected: bool, inside: bool
) -> None:
    used = node
    if inside:
        made = HELPER.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None])
        branch = HELPER.make_graph([node], "branch", [], [made])
        used = HELPER.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    assert in_place.reads_in_place(program(tmp_path / "a", used, size=1 << 30)) == expected
    assert in_place.reads_in_place(program(tmp_path / "b", used, size=1 << 20))
