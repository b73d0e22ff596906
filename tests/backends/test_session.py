"""onnxruntime sessions: where weights may lie, what is checked, what is written in place."""

import shutil
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.tiny_bundle import DIM, HIDDEN, KV, tiny_bundle
from vlmc.backends import BACKENDS, OpenOptions, SessionError
from vlmc.backends.onnxruntime import session as session_module
from vlmc.backends.onnxruntime.session import open_session
from vlmc.bundle.store import read_bundle
from vlmc.errors import VlmcError

OPTIONS = OpenOptions(threads=1)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("built"))


@pytest.fixture
def folder(built, tmp_path) -> Path:
    return shutil.copytree(built, tmp_path / "copy")


def relocate(folder: Path, location: str) -> None:
    model = onnx.load(folder / "programs/vision.onnx", load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    (folder / "programs/vision.onnx").write_bytes(model.SerializeToString())


def vision(folder: Path, **changes):
    program = read_bundle_of(folder).programs["vision"]
    return open_session(folder, program.model_copy(update=changes), OPTIONS)


def read_bundle_of(folder: Path):
    from vlmc.bundle.manifest import Manifest

    return Manifest.model_validate_json((folder / "manifest.json").read_bytes())


@pytest.mark.parametrize(
    "location",
    [
        "../outside.bin",
        "weights/../../outside.bin",
        "ABSOLUTE",
        "weights/other.bin",
        "processor/prompt.json",
        "./weights/all.bin",
        "",
        "*/_ORT_MEM_ADDR_/*",
    ],
)
def test_a_graph_that_points_elsewhere_is_refused(folder, location):
    shutil.copy(folder / "weights/all.bin", folder.parent / "outside.bin")
    shutil.copy(folder / "weights/all.bin", folder / "weights/other.bin")
    relocate(folder, location.replace("ABSOLUTE", str(folder / "weights/all.bin")))
    with pytest.raises(VlmcError, match="not one of its weights"):
        vision(folder)


@pytest.mark.parametrize("location", ["../outside.bin", "weights/link.bin"])
def test_onnxruntime_itself_stays_in_the_folder(folder, location):
    """The second wall: even a manifest that lists such a file gets nothing from outside."""
    shutil.copy(folder / "weights/all.bin", folder.parent / "outside.bin")
    (folder / "weights/link.bin").symlink_to(folder.parent / "outside.bin")
    relocate(folder, location)
    program = read_bundle_of(folder).programs["vision"]
    listed = program.model_copy(update={"weights": (location,)})
    with pytest.raises(VlmcError, match=r"escapes|not one of its weights"):
        open_session(folder, listed, OPTIONS)


@pytest.mark.parametrize(
    ("key", "value"), [("offset", "99999999"), ("length", "-1"), ("offset", "-4")]
)
def test_weights_beyond_the_file_are_refused(folder, key, value):
    model = onnx.load(folder / "programs/vision.onnx", load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == key:
            entry.value = value
    (folder / "programs/vision.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(VlmcError, match="onnxruntime refuses"):
        vision(folder)


@pytest.mark.parametrize("data", [b"", b"<html>", b"\x08\x0a"])
def test_a_file_that_is_no_graph_is_refused(folder, data):
    (folder / "programs/vision.onnx").write_bytes(data)
    with pytest.raises(VlmcError, match=r"vision\.onnx"):
        vision(folder)


def test_the_program_must_be_what_the_manifest_declares(folder):
    (features,) = read_bundle_of(folder).programs["vision"].outputs
    (pixels,) = read_bundle_of(folder).programs["vision"].inputs
    for changes in (
        {"outputs": (features.model_copy(update={"name": "other"}),)},
        {"outputs": (features.model_copy(update={"dtype": "float16"}),)},
        {"outputs": (features.model_copy(update={"shape": ("n", HIDDEN + 1)}),)},
        {"inputs": (pixels.model_copy(update={"shape": (1, 3, 9, "width")}),)},
        {"inputs": (pixels.model_copy(update={"shape": (1, 3, 8)}),)},
        {"inputs": (pixels, pixels.model_copy(update={"name": "more"}))},
    ):
        with pytest.raises(VlmcError, match=r"manifest"):
            vision(folder, **changes)


def test_feeds_are_checked_before_their_pointers_are_used(folder):
    session = vision(folder)
    good = np.zeros((1, 3, 8, 8), np.float32)
    assert session.run({"pixel_values": good})["image_features"].shape == (4, HIDDEN)
    for bad in (
        good.astype(np.float64),
        good[0],
        np.zeros((1, 3, 9, 8), np.float32),
        np.zeros((1, 8, 3, 8), np.float32).transpose(0, 2, 1, 3),
    ):
        with pytest.raises(VlmcError, match="the program takes float32"):
            session.run({"pixel_values": bad})
    for feeds in ({}, {"pixel_values": good, "more": good}):
        with pytest.raises(VlmcError, match="missing or unknown"):
            session.run(feeds)
    with pytest.raises(VlmcError, match="missing or unknown"):
        session.run({"pixel_values": good}, {"other": good})
    with pytest.raises(VlmcError, match="image_features"):
        session.run({"pixel_values": good}, {"image_features": np.zeros((4, HIDDEN), np.float64)})


def test_outputs_are_written_where_they_are_asked(folder):
    session = vision(folder)
    random = np.random.default_rng(0)
    for width in (8, 16, 8):  # the shape of an output may change from run to run
        pixels = random.normal(size=(1, 3, 8, width)).astype(np.float32)
        alone = session.run({"pixel_values": pixels})["image_features"]
        buffer = np.zeros_like(alone)
        assert session.run({"pixel_values": pixels}, {"image_features": buffer}) == {}
        np.testing.assert_array_equal(buffer, alone)
        assert np.abs(alone).max() > 0


def test_the_same_arrays_are_bound_once_and_read_each_time(folder):
    session = vision(folder)
    pixels = np.ones((1, 3, 8, 8), np.float32)
    given = {"pixel_values": pixels}
    written = {"image_features": np.zeros((4, HIDDEN), np.float32)}
    for value in (1, 2, 3):
        pixels[...] = value
        expected = session.run({"pixel_values": pixels.copy()})["image_features"]
        for _ in range(2):
            written["image_features"][...] = 0
            assert session.run(given, written) == {}
            np.testing.assert_array_equal(written["image_features"], expected)


def test_a_run_that_fails_says_so_and_the_next_one_works(folder):
    program = read_bundle(folder).manifest.programs["vision"]
    session = open_session(folder, program, OPTIONS)
    odd = {"pixel_values": np.zeros((1, 3, 8, 3), np.float32)}  # no multiple of a patch
    good = {"pixel_values": np.ones((1, 3, 8, 8), np.float32)}
    expected = session.run(good)["image_features"]
    with pytest.raises(SessionError, match="onnxruntime failed"):
        session.run(odd)
    np.testing.assert_array_equal(session.run(good)["image_features"], expected)


def test_a_cache_is_written_in_place_and_only_in_its_slot(folder):
    bundle = read_bundle(folder)
    session = BACKENDS["onnxruntime"].open(folder, bundle.manifest.programs["language"], OPTIONS)
    caches = {
        f"{kind}.{layer}": np.zeros((3, KV, 96, DIM), np.float32)
        for kind in ("key", "value")
        for layer in (0, 1)
    }
    feeds = {
        "input_ids": np.array([[5, 6, 7]]),
        "image_features": np.zeros((1, HIDDEN), np.float32),
        "feature_index": np.full((1, 3), -1),
        "position_ids": np.array([[0, 1, 2]]),
        "sequence_lengths": np.array([3], np.int32),
        "total_length": np.array(3, np.int32),
    }
    past = {f"past_{name}": cache[1:2] for name, cache in caches.items()}
    present = {f"present_{name}": cache[1:2] for name, cache in caches.items()}
    outputs = session.run(feeds | past, present)
    assert list(outputs) == ["logits"]
    for cache in caches.values():
        assert np.abs(cache[1, :, :3]).min() > 0
        assert not cache[1, :, 3:].any()
        assert not cache[0].any()
        assert not cache[2].any()


def test_an_output_outlives_the_next_run(folder):
    session = vision(folder)
    first = session.run({"pixel_values": np.ones((1, 3, 8, 8), np.float32)})["image_features"]
    kept = first.copy()
    session.run({"pixel_values": np.zeros((1, 3, 8, 8), np.float32)})
    np.testing.assert_array_equal(first, kept)


def test_threads_wait_busily_within_a_run_and_not_after_it(folder):
    program = read_bundle(folder).manifest.programs["vision"]
    session = open_session(folder, program, OpenOptions(threads=2, spin=True))
    session.run({"pixel_values": np.ones((1, 3, 8, 8), np.float32)})
    spent = time.process_time()
    time.sleep(0.1)
    # A thread that goes on takes 30 ms of it, from the program that runs next.
    assert time.process_time() - spent < 0.01


def test_options_reach_the_session(folder):
    program = read_bundle(folder).manifest.programs["vision"]
    options = OpenOptions(threads=2, spin=False, shrink=True)
    session = open_session(folder, program, options)
    settings = session._session.get_session_options()
    assert settings.intra_op_num_threads == 2
    assert settings.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    pixels = np.ones((1, 3, 8, 8), np.float32)
    for _ in range(2):
        assert session.run({"pixel_values": pixels})["image_features"].shape == (4, HIDDEN)


@pytest.mark.parametrize(
    ("small", "given_back"), [(4 * 3 * 8 * 8, False), (4 * 3 * 8 * 8 - 1, True)]
)
def test_memory_is_given_back_where_a_run_is_not_small(folder, monkeypatch, small, given_back):
    monkeypatch.setattr(session_module, "_SMALL", small)
    program = read_bundle(folder).manifest.programs["vision"]
    opened = open_session(folder, program, OpenOptions(threads=1, shrink=True))
    run, seen = opened._session.run_with_iobinding, []
    monkeypatch.setattr(
        opened._session,
        "run_with_iobinding",
        lambda binding, options: (seen.append(options), run(binding, options)),
    )
    opened.run({"pixel_values": np.ones((1, 3, 8, 8), np.float32)})
    assert [options is not None for options in seen] == [given_back]
