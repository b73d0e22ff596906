"""Memory in large pages."""

import mmap
from pathlib import Path

import pytest

from vlmc.runtime.pages import zeros_in_large_pages


def test_zeros_that_can_be_written():
    memory = zeros_in_large_pages(5 << 20)
    assert memory.shape == (5 << 20,)
    assert not memory.any()
    memory[:] = 7
    assert memory.sum() == 7 * len(memory)
    assert zeros_in_large_pages(0).shape == (0,)


def test_the_system_is_asked_for_large_pages():
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        assert zeros_in_large_pages(4 << 20).size == 4 << 20
        return
    memory = zeros_in_large_pages(4 << 20)
    assert " hg" in _flags(memory.ctypes.data)


def test_a_system_without_them(monkeypatch):
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    memory = zeros_in_large_pages(1 << 20)
    memory[-1] = 1
    assert memory.sum() == 1


def test_more_than_there_is():
    with pytest.raises(MemoryError):
        zeros_in_large_pages(1 << 60)


def _flags(address: int) -> str:
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        place = line.split(" ", 1)[0]
        if "-" in place and not place.endswith(":"):
            start, end = (int(part, 16) for part in place.split("-"))
            inside = start <= address < end
        elif inside and line.startswith("VmFlags:"):
            return line
    return ""
