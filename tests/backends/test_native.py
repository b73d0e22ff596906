"""Whether our own kernels are there, and what is said where they aren't."""

import ctypes
import importlib.util
import os
import re
import shutil
import sysconfig
from pathlib import Path

import pytest

from tests.backends.kernels import KERNELS, built
from vlmc.backends.onnxruntime import native
from vlmc.errors import VlmcError

FOLDER = Path(__file__).parents[2] / "vlmc" / "backends" / "onnxruntime" / "native"
COMPILER = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
REBUILD = "the kernels are not those of the sources: run pip install -e . again"


@pytest.fixture(autouse=True)
def switched_on(monkeypatch):
    monkeypatch.delenv("VLMC_KERNELS", raising=False)


def test_the_library_is_there_where_a_compiler_is():
    if shutil.which(COMPILER.split()[0]):
        assert len(built()) == len(native._LEVELS), (
            "vlmc was installed without its kernels: run pip install -e . again"
        )
    elif not built():
        assert native.library() is None
        assert native.why_not() == "not compiled when vlmc was installed: is there a C++ compiler?"


def test_a_library_that_was_built_serves_or_the_cpu_is_named():
    if built() and KERNELS is None:
        assert native.why_not() == "this CPU has no AVX2"
    assert (KERNELS is None) == bool(native.why_not())


def test_the_library_is_newer_than_its_sources():
    files = [file for file in built() if file.parent == FOLDER]
    if files:
        sources = [path for path in FOLDER.iterdir() if path.suffix in {".cpp", ".h"}]
        newest = max(source.stat().st_mtime for source in sources)
        assert all(file.stat().st_mtime >= newest for file in files), REBUILD


def test_both_languages_name_one_interface():
    header = FOLDER / "kernels.h"
    if header.is_file():  # a checkout
        [number] = re.findall(r"kInterface = (\d+);", header.read_text(encoding="utf-8"))
        assert int(number) == native.INTERFACE


@pytest.mark.parametrize("word", ["off", "OFF", "0", "no"])
def test_the_environment_turns_the_kernels_off(word, monkeypatch):
    monkeypatch.setenv("VLMC_KERNELS", word)
    assert native.library() is None
    assert native.why_not() == f"VLMC_KERNELS={word}"


@pytest.mark.parametrize("switch", ["VLMC_KERNELS", "VLMC_TILES"])
def test_a_word_that_says_nothing_is_refused(switch, monkeypatch):
    usual = native.library()
    for word in ("of", "avx", " off", "2"):
        monkeypatch.setenv(switch, word)
        with pytest.raises(VlmcError, match=f"^{switch} in the environment: '{word}' says") as one:
            native.library()
        assert one.value.allowed[:2] == ("on", "off")
    monkeypatch.setenv(switch, "")
    assert native.library() == usual


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Writes a file where the library is looked for."""
    monkeypatch.setattr(native, "_FOLDER", tmp_path)

    def plant(content: bytes) -> str:
        (tmp_path / f"kernels{native.EXTENSION_SUFFIXES[0]}").write_bytes(content)
        assert native.library() is None
        return native.why_not()

    return plant


def test_no_library(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "_FOLDER", tmp_path)
    assert native.library() is None
    assert "not compiled" in native.why_not()


@pytest.mark.parametrize("content", [b"", b"not a library", b"\x7fELF\x02" + b"\xff" * 95])
def test_a_file_that_is_no_library(planted, content):
    assert re.search("cannot be loaded|cut short", planted(content))


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_library_cut_short(planted, share):
    whole = Path(other_library()).read_bytes()
    assert "cut short" in planted(whole[: int(len(whole) * share)])


def test_another_library(planted):
    assert "cannot be loaded" in planted(Path(other_library()).read_bytes())


def other_library() -> str:
    """Some shared library that every install has."""
    spec = importlib.util.find_spec("pydantic_core._pydantic_core")
    assert spec is not None
    assert spec.origin is not None
    return spec.origin


@pytest.mark.parametrize(
    ("interface", "supported", "called", "reason"),
    [
        (native.INTERFACE, 1, native._CALLED, ""),
        (native.INTERFACE, 0, native._CALLED, "this CPU has no AVX-512 VNNI"),
        (native.INTERFACE + 1, 1, native._CALLED, "built from other sources"),
        (native.INTERFACE, 1, native._CALLED[:-1], "built from other sources"),
    ],
)
def test_what_the_library_says_of_itself(
    interface, supported, called, reason, tmp_path, monkeypatch
):
    class Loaded:
        def __init__(self, path):
            vars(self).update(dict.fromkeys(called))

        def vlmc_kernels_interface(self):
            return interface

        def vlmc_kernels_supported(self):
            return supported

    file = tmp_path / f"kernels{native.EXTENSION_SUFFIXES[0]}"
    file.write_bytes(b"a library")
    monkeypatch.setattr(native, "_FOLDER", tmp_path)
    monkeypatch.setattr(ctypes, "CDLL", Loaded)
    assert native.library() == (None if reason else file)
    assert reason in native.why_not()


@pytest.mark.parametrize(
    ("switch", "avx512", "avx2", "found"),
    [
        ("", 1, 1, "kernels"),
        ("", 0, 1, "kernels_avx2"),
        ("AVX2", 1, 1, "kernels_avx2"),
        ("avx512", 1, 1, "kernels"),
        ("avx512", 0, 1, "this CPU has no AVX-512 VNNI"),
        ("", 0, 0, "this CPU has no AVX2"),
        ("", None, 1, "was built from other sources"),
    ],
)
def test_the_fastest_library_that_the_cpu_can_run(
    switch, avx512, avx2, found, tmp_path, monkeypatch
):
    """``None``: of another interface."""
    supported = {"kernels": avx512, "kernels_avx2": avx2}

    class Loaded:
        def __init__(self, path):
            vars(self).update(dict.fromkeys(native._CALLED))
            self.supported = supported[Path(path).name.partition(".")[0]]

        def vlmc_kernels_interface(self):
            return native.INTERFACE if self.supported is not None else 0

        def vlmc_kernels_supported(self):
            return self.supported

        def vlmc_kernels_tiles(self):
            return 0

    for name in supported:
        (tmp_path / f"{name}{native.EXTENSION_SUFFIXES[0]}").write_bytes(b"a library")
    monkeypatch.setattr(native, "_FOLDER", tmp_path)
    monkeypatch.setattr(ctypes, "CDLL", Loaded)
    monkeypatch.setenv("VLMC_KERNELS", switch)
    library = native.library()
    if library is None:
        assert found in native.why_not()
    else:
        assert (library.name.partition(".")[0], native.why_not()) == (found, "")
        assert native.instructions() == ("AVX2" if found.endswith("avx2") else "AVX-512 VNNI")
