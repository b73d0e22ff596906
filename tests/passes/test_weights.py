import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from vlmc.bundle.store import hash_file
from vlmc.errors import VlmcError
from vlmc.passes import weight_stream
from vlmc.passes.checkpoint_index import read_index
from vlmc.passes.weights import WeightJob, write_weights
from vlmc.quantizers import QUANTIZERS

SHAPES = {
    "embed": (50, 32),
    "q": (24, 100),
    "k": (8, 100),
    "v": (8, 100),
    "norm": (100,),
    "conv": (6, 3, 2, 2),
    "gate": (),
}


def tensors(seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}


@pytest.fixture
def checkpoint(tmp_path):
    from safetensors.numpy import save_file

    held = {name: np.asarray(value) for name, value in tensors().items()}
    save_file(held, tmp_path / "model.safetensors")
    return tmp_path


def stored_array(folder, stored):
    raw = (folder / stored.file).read_bytes()[stored.offset : stored.offset + stored.nbytes]
    return np.frombuffer(raw, stored.dtype).reshape(stored.shape)


def write(folder, *jobs, name="weights.bin", **options):
    tensors, file = write_weights(jobs, read_index(folder), folder / name, **options)
    assert file == hash_file(folder / name)
    return tensors


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("block_bytes", [1, 4000, 1 << 20])
def test_each_format_is_stored_as_the_quantizer_makes_it(checkpoint, name, block_bytes):
    job = WeightJob("w", ("q", "k", "v"), format=name)
    table = write(checkpoint, job, block_bytes=block_bytes)
    whole = np.concatenate([tensors()[source] for source in job.sources])
    quantizer = QUANTIZERS[name]
    expected = quantizer.quantize(whole, 32)
    parts = quantizer.parts(*whole.shape, 32)
    assert list(table) == ["w" + part.suffix for part in parts]
    for part, array in zip(parts, expected, strict=True):
        np.testing.assert_array_equal(
            stored_array(checkpoint, table["w" + part.suffix]), array, strict=True
        )
    wrong = quantizer.restore(expected, 100, 32)[: len(whole)] - whole
    assert table["w"].relative_error == pytest.approx(
        np.linalg.norm(wrong) / np.linalg.norm(whole), rel=1e-4, abs=1e-12
    )
    assert table["w"].max_error == pytest.approx(np.abs(wrong).max(), rel=1e-5)


def test_any_shape_keeps_its_elements(checkpoint):
    table = write(
        checkpoint,
        WeightJob("norm", ("norm",)),
        WeightJob("conv", ("conv",), format="fp16"),
        WeightJob("gate", ("gate",)),
        WeightJob("flat", ("conv",), reshape=(6, 12)),
        WeightJob("turned", ("k",), transpose=True),
        WeightJob("turned16", ("k",), format="fp16", transpose=True),
        WeightJob("ids", value=np.arange(7, dtype=np.int64)),
        WeightJob("flag", value=np.array(True)),
        WeightJob("table", value=tensors()["q"], format="int8_block"),
        WeightJob("empty", value=np.zeros((0, 4), np.float32)),
    )
    held = tensors()
    expected = {
        "norm": held["norm"],
        "conv": held["conv"].astype(np.float16),
        "gate": held["gate"],
        "flat": held["conv"].reshape(6, 12),
        "turned": held["k"].T,
        "turned16": held["k"].T.astype(np.float16),
        "ids": np.arange(7, dtype=np.int64),
        "flag": np.array(True),
        "table.scales": QUANTIZERS["int8_block"].quantize(held["q"], 32)[1],
        "empty": np.zeros((0, 4), np.float32),
    }
    for name, array in expected.items():
        np.testing.assert_array_equal(
            stored_array(checkpoint, table[name]), np.asarray(array), strict=True
        )


def test_flattened_weights_of_more_axes_can_be_quantized(checkpoint):
    table = write(checkpoint, WeightJob("conv", ("conv",), format="int8_channel"))
    flat = tensors()["conv"].reshape(6, 12)
    np.testing.assert_array_equal(
        stored_array(checkpoint, table["conv"]), QUANTIZERS["int8_channel"].quantize(flat, 0)[0]
    )


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_tied_tensor_is_stored_once(checkpoint, name):
    embed = WeightJob("embed", ("embed",), format=name)
    head = WeightJob("head", ("embed",), format=name)
    alone = write(checkpoint, embed, name="alone.bin")
    tied = write(checkpoint, embed, head)
    assert (checkpoint / "alone.bin").stat().st_size == (checkpoint / "weights.bin").stat().st_size
    for name in alone:
        assert tied["head" + name.removeprefix("embed")] == tied[name]


def test_other_blocks_or_formats_of_one_source_are_stored_apart(checkpoint):
    table = write(
        checkpoint,
        WeightJob("a", ("embed",), format="int4_block", block=16),
        WeightJob("b", ("embed",), format="int4_block", block=32),
        WeightJob("c", ("embed",), format="int8_block", block=32),
        WeightJob("d", ("embed",)),
        WeightJob("e", ("embed",), reshape=(25, 64)),
    )
    assert len({table[name].offset for name in "abcd"}) == 4
    assert table["d"].offset == table["e"].offset
    assert (table["d"].shape, table["e"].shape) == ((50, 32), (25, 64))


def test_no_jobs_are_an_empty_file(checkpoint):
    assert write(checkpoint) == {}
    assert (checkpoint / "weights.bin").read_bytes() == b""


def test_places_are_aligned_apart_and_padded_with_zeros(checkpoint):
    large = np.ones((513, 512), np.float32)
    table = write(
        checkpoint,
        WeightJob("a", ("gate",)),
        WeightJob("b", ("q",), format="int4_block"),
        WeightJob("large", value=large),
        WeightJob("c", ("gate",), format="fp16"),
    )
    places = sorted((stored.offset, stored.nbytes) for stored in table.values())
    assert all(offset % 64 == 0 for offset, _ in places)
    assert table["large"].offset % 4096 == 0
    raw = (checkpoint / "weights.bin").read_bytes()
    end = 0
    for offset, nbytes in places:
        assert offset >= end
        assert not any(raw[end:offset])
        end = offset + nbytes
    assert len(raw) == end


@pytest.mark.parametrize("name", QUANTIZERS)
def test_bytes_depend_neither_on_threads_nor_on_blocks(checkpoint, name):
    jobs = [
        WeightJob("a", ("q", "k", "v"), format=name),
        WeightJob("b", ("embed",), format=name),
    ]
    tables, files = [], []
    for threads, block_bytes in ((1, 1 << 20), (4, 1 << 20), (3, 5000), (2, 1)):
        tables.append(write(checkpoint, *jobs, threads=threads, block_bytes=block_bytes))
        files.append((checkpoint / "weights.bin").read_bytes())
    assert len(set(files)) == 1
    assert tables[1:] == tables[:1] * 3


def test_a_build_without_kernels_writes_the_same(checkpoint, monkeypatch):
    jobs = [WeightJob(name, (name,), format="int4_block") for name in ("q", "embed")]
    table = write(checkpoint, *jobs)
    data = (checkpoint / "weights.bin").read_bytes()
    monkeypatch.setenv("VLMC_KERNELS", "off")
    assert write(checkpoint, *jobs) == table
    assert (checkpoint / "weights.bin").read_bytes() == data


def test_progress_counts_up_to_the_whole(checkpoint):
    seen = []
    write(
        checkpoint,
        WeightJob("a", ("q",)),
        WeightJob("b", ("embed",)),
        block_bytes=2000,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert len(seen) > 2
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (4 * (24 * 100 + 50 * 32),) * 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["fp16", "int8_channel", "int8_block", "int4_block"])
def test_no_number_is_refused_by_name(checkpoint, name, bad):
    from safetensors.numpy import save_file

    held = {**tensors(), "gate": np.zeros(1, np.float32)}
    held["k"][3, 5] = bad
    save_file(held, checkpoint / "model.safetensors")
    with pytest.raises(VlmcError, match="tensor 'k' holds values that are no finite numbers"):
        write(checkpoint, WeightJob("w", ("k",), format=name))
    assert sorted(path.name for path in checkpoint.iterdir()) == ["model.safetensors"]


def test_what_does_not_fit_fp16_is_refused_by_name(checkpoint):
    from safetensors.numpy import save_file

    held = {**tensors(), "gate": np.zeros(1, np.float32)}
    held["k"][3, 5] = 1e5
    save_file(held, checkpoint / "model.safetensors")
    with pytest.raises(VlmcError, match="tensor 'k': a weight of 100000 does not fit float16"):
        write(checkpoint, WeightJob("w", ("k",), format="fp16"))


def test_tensors_that_do_not_join_and_unknown_names_are_refused(checkpoint):
    with pytest.raises(VlmcError, match=r"'embed' of shape \[50, 32\] cannot be joined to 'q'"):
        write(checkpoint, WeightJob("w", ("q", "embed")))
    with pytest.raises(VlmcError, match="no tensor 'embe'") as caught:
        write(checkpoint, WeightJob("w", ("embe",)))
    assert "did you mean 'embed'?" in str(caught.value)
    with pytest.raises(VlmcError, match="unknown weight format 'int5_block'"):
        write(checkpoint, WeightJob("w", ("q",), format="int5_block"))


@pytest.mark.parametrize(
    "jobs",
    [
        [WeightJob("w", ("norm",), format="int4_block")],
        [WeightJob("w", ("q",), format="int4_block", transpose=True)],
        [WeightJob("w", ("q",), format="int4_block", reshape=(240, 10))],
        [WeightJob("w", ("q",), reshape=(7, 7))],
        [WeightJob("w")],
        [WeightJob("w", ("q",), value=np.zeros(3))],
        [WeightJob("w", ("q",)), WeightJob("w", ("k",))],
    ],
)
def test_jobs_that_make_no_sense_are_the_compilers_fault(checkpoint, jobs):
    with pytest.raises(ValueError, match="'w'"):
        write(checkpoint, *jobs)


def test_a_full_disk_is_one_clear_error(checkpoint, monkeypatch):
    def full(file, offset, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(VlmcError, match=r"cannot write .* GB of weights: No space left on device"):
        write(checkpoint, WeightJob("w", ("q",)))
    assert sorted(path.name for path in checkpoint.iterdir()) == ["model.safetensors"]


def test_a_write_that_fails_late_leaves_nothing(checkpoint, monkeypatch):
    write_at, calls = os.pwrite, []

    def failing(file, data, offset):
        calls.append(offset)
        if len(calls) > 3:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return write_at(file, data, offset)

    monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises(VlmcError, match="Input/output error"):
        write(checkpoint, WeightJob("w", ("q",)), WeightJob("e", ("embed",)), block_bytes=400)
    assert sorted(path.name for path in checkpoint.iterdir()) == ["model.safetensors"]


def test_short_writes_are_completed(checkpoint, monkeypatch):
    jobs = [WeightJob("w", ("q",), format="int8_channel"), WeightJob("e", ("embed",))]
    write(checkpoint, *jobs, name="whole.bin")
    write_at = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: write_at(file, data[:7], at))
    write(checkpoint, *jobs, name="short.bin")
    assert (checkpoint / "short.bin").read_bytes() == (checkpoint / "whole.bin").read_bytes()


def test_a_disk_that_cannot_reserve_is_written_all_the_same(checkpoint, monkeypatch):
    job = WeightJob("w", ("q",), format="int4_block")
    write(checkpoint, job, name="reserved.bin")

    def unsupported(file, offset, size):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    write(checkpoint, job)
    assert (checkpoint / "weights.bin").read_bytes() == (checkpoint / "reserved.bin").read_bytes()


def test_an_interrupt_leaves_nothing_and_stops_the_work(checkpoint, monkeypatch):
    write_at, calls = os.pwrite, []

    def slow(file, data, offset):
        calls.append(offset)
        time.sleep(0.02)
        return write_at(file, data, offset)

    def interrupt(done, total):
        raise KeyboardInterrupt

    before = threading.active_count()
    monkeypatch.setattr(os, "pwrite", slow)
    with pytest.raises(KeyboardInterrupt):
        write(checkpoint, WeightJob("w", ("q",)), block_bytes=400, progress=interrupt)
    assert len(calls) < 24  # of 24 rows, each a unit
    assert threading.active_count() == before
    assert sorted(path.name for path in checkpoint.iterdir()) == ["model.safetensors"]


MEASURE = """
import resource, sys
from pathlib import Path
from vlmc.passes.checkpoint_index import read_index
from vlmc.passes.weights import WeightJob, write_weights
folder, name = Path(sys.argv[1]), sys.argv[2]
index = read_index(folder)
def write(source):
    write_weights([WeightJob("w", (source,), format=name)], index, folder / f"{name}.bin")
write("small")  # the interpreter, numpy and a thread or two are not what is measured
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write("large")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.fixture(scope="module")
def large_checkpoint(tmp_path_factory):
    """A tensor of 128 Mi bfloat16 elements: 256 MiB stored, 512 MiB in float32."""
    import json

    folder = tmp_path_factory.mktemp("large")
    rows, columns = 32768, 4096
    header = json.dumps(
        {
            "small": {"dtype": "BF16", "shape": [4, 4096], "data_offsets": [0, 32768]},
            "large": {
                "dtype": "BF16",
                "shape": [rows, columns],
                "data_offsets": [32768, 32768 + rows * columns * 2],
            },
        }
    ).encode()
    chunk = np.random.default_rng(0).standard_normal(4 << 20, np.float32)
    bits = (chunk.view(np.uint32) >> 16).astype("<u2").tobytes()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header + bits[:32768])
        for _ in range(rows * columns * 2 // len(bits)):
            file.write(bits)
    return folder


@pytest.mark.parametrize("name", ["int8_channel", "int4_block", "fp16"])
def test_memory_is_bounded_by_a_few_blocks(large_checkpoint, name):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(large_checkpoint), name],
        env={**os.environ, "PYTHONPATH": str(Path(weight_stream.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (large_checkpoint / f"{name}.bin").unlink()
    assert int(done.stdout) * 1024 < 100 << 20


def test_what_is_read_once_is_let_go_when_it_is_read(checkpoint, monkeypatch):
    index = read_index(checkpoint)
    plain = write(checkpoint, WeightJob("w", ("q", "k")), WeightJob("n", ("norm",)))
    told, read = [], []

    def advise(file, begin, size, advice):
        told.append(begin)

    monkeypatch.setattr(os, "posix_fadvise", advise, raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_DONTNEED", 4, raising=False)
    real = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda file, to, at: (read.append((at, list(told))), real(file, to, at))[1]
    )
    again = write(checkpoint, WeightJob("w", ("q", "k")), WeightJob("n", ("norm",)), once=True)
    assert again == plain
    assert sorted(told) == sorted(index[name].begin for name in ("q", "k", "norm"))
    assert all(at not in before for at, before in read)
