"""The benchmark's own arithmetic, on made-up rounds; and one tiny run of it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.rivals import disturbance, environment
from tests.benchmarks.rivals.results import Results
from tests.benchmarks.rivals.rounds import groups
from tests.benchmarks.rivals.table import DECODE, FIGURES, PREFILL, Decoder, ratio, shares, table

ROOT = Path(__file__).parents[2]
DECODER = {
    "hidden_size": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "vocab_size": 100,
}


def row(number: int, *, ttft: float = 2.0, decode: float = 1.0, **values: Any) -> dict[str, Any]:
    return {
        "round": number,
        "prompt_tokens": 600,
        "vision": 1.0,
        "ttft": ttft,
        "ttft_cpu": ttft,
        "steps": 10,
        "decode": decode,
        "decode_cpu": decode,
        "peak": 400 << 20,
        **values,
    }


def engine(*rows: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {"rounds": list(rows), "cold": [], **values}


def cells(text: str, name: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {name}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_cells_are_the_median_the_best_and_the_ratio_to_the_reference() -> None:
    engines = {
        "vlmc int8": engine(row(0), row(1), row(2)),
        "other": engine(row(0, ttft=3.0), row(1, ttft=5.0), row(2, ttft=4.0)),
    }
    found = cells(table(engines, "vlmc int8"), "other")
    assert found[1] == "4.00 (3.00) 2.00x"
    assert found[3] == "200 (300) 3.00x"  # 600 tokens in the 3 s after the picture
    assert found[4] == "10.0 (10.0) 1.00x"


def test_a_ratio_above_one_says_the_reference_is_better_for_times_and_for_rates() -> None:
    slow, fast = engine(row(0, ttft=4.0, decode=2.0)), engine(row(0))
    assert ratio(FIGURES[0], slow, fast) == 2.0
    assert ratio(DECODE, slow, fast) == 2.0
    assert ratio(PREFILL, slow, fast) == 3.0


def test_a_ratio_is_taken_within_rounds_that_both_have() -> None:
    # The machine was twice as slow in round 1, for both: that must not count.
    one = engine(row(0, ttft=3.0), row(1, ttft=6.0))
    other = engine(row(1, ttft=4.0), row(2, ttft=1.0))
    assert ratio(FIGURES[0], one, other) == 1.5
    assert ratio(FIGURES[0], one, engine(row(7))) is None


def test_disturbed_rounds_are_left_out_where_there_are_others() -> None:
    mixed = engine(row(0, ttft=9.0, others=0.5), row(1, ttft=3.0, others=0.02))
    loud = engine(row(0, ttft=9.0, others=0.5))
    text = table({"vlmc int8": mixed, "loud": loud}, "vlmc int8")
    assert cells(text, "vlmc int8")[1] == "3.00 1.00x"
    assert cells(text, "loud")[1] == "9.00"
    assert "- others took more than a tenth of the machine: loud" in text


def test_an_engine_that_could_not_run_keeps_its_row_and_its_reason() -> None:
    engines = {
        "vlmc int8": engine(row(0)),
        "lost": engine(error="not installed: no wheel\nfor this machine"),
    }
    text = table(engines, "vlmc int8")
    assert cells(text, "lost")[0] == "lost (failed, see below)"
    assert set(cells(text, "lost")[1:]) == {"-"}
    assert "- lost: not installed: no wheel for this machine" in text


def test_an_engine_without_a_vision_tower_has_no_first_token_of_a_picture() -> None:
    blind = row(0, ttft=3.0) | {"vision": None}
    text = table({"vlmc int8": engine(row(0)), "blind": engine(blind)}, "vlmc int8")
    assert cells(text, "blind")[1:4] == ["-", "-", "200 3.00x"]


def test_rows_peaks_sizes_and_builds_are_shown() -> None:
    figures = engine(row(0, rows_tokens=40, rows_seconds=0.5))
    figures["cold"] = [{"round": 1, "start": 3.0, "peak": 300 << 20}]
    figures |= {"size": 5 << 20, "build": {"wall": 61.2, "cpu": 70.0, "peak": 900 << 20}}
    found = cells(table({"vlmc int8": figures}, "vlmc int8"), "vlmc int8")
    assert found[5:] == ["80.0", "3.00", "400", "3.0", "300", "5", "70", "900"]


def test_a_decoders_weights_are_counted_as_transformers_makes_them() -> None:
    import transformers as hf

    model = hf.Qwen2ForCausalLM(hf.Qwen2Config(**DECODER, tie_word_embeddings=False))
    layers = sum(one.numel() for one in model.model.layers.parameters() if one.dim() == 2)
    counted = Decoder.of(DECODER)
    kept = 2 * DECODER["num_hidden_layers"] * model.model.layers[0].self_attn.k_proj.out_features
    assert counted == Decoder(layers, model.lm_head.weight.numel(), kept)
    assert counted.read("int4") == layers / 2 + counted.head


def test_shares_of_memory_are_of_what_it_gave_in_the_same_round() -> None:
    peaks = {"fp32": 1e6, "int8": 2e6, "tiles": 0}
    limits = [
        {"round": 0, "read_1": 5e3, "read": 8e3, "steady": 5e3, **peaks},
        {"round": 1, "read_1": 9e3, "read": 1e5, "steady": 8e4, **peaks, "int8": 4e6, "tiles": 1e7},
    ]
    decoder = Decoder(layers=300, head=100, cached=1)
    text = shares({"vlmc int8": engine(row(1))}, limits, decoder)
    # 400 bytes x 10 tokens of 100,000; with the cache 4 bytes x 605 tokens more each time.
    assert "4% of what memory gives at best in the same round and 5% of what it gives" in text
    assert "(28% and 35% with the cache)" in text
    # 2 x 300 x 600 tokens of 4,000,000 and of 10,000,000
    assert "9% of the peak of int8, 4% of that of its tiles" in text
    both = shares({"vlmc int8": engine(row(0), row(1))}, limits, decoder)
    assert "27% of what memory gives at best" in both  # 50 % and 4 %
    assert "unknown" in shares({}, [], decoder)


def test_rounds_from_before_limits_had_numbers_are_held_to_the_best_one() -> None:
    limits = [{"read_1": 9e3, "read": 1e5, "fp32": 1e6, "int8": 4e6, "tiles": 0}]
    text = shares({"vlmc int8": engine(row(0))}, limits, Decoder(layers=300, head=100))
    assert "4% of what memory gives at best in the same round and 4% of" in text


def test_a_later_run_adds_rounds_and_forgets_an_error_that_is_over(tmp_path: Path) -> None:
    first = Results(tmp_path / "one.json")
    first.note("a", "rounds", row(0))
    first.note("b", "error", {"reason": "too old"})
    second = Results(tmp_path / "one.json")
    assert second.next_round == 1
    second.note("b", "rounds", row(1))
    found = json.loads((tmp_path / "one.json").read_text())["engines"]
    assert [one["round"] for one in found["a"]["rounds"]] == [0]
    assert "error" not in found["b"]


def test_a_disturbed_measurement_is_taken_again_and_the_quietest_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cores = os.cpu_count() or 1
    foreign = iter([0.9, 0.5, 0.7])
    spent = {"clock": 0.0, "machine": 0.0, "own": 0.0}

    def measure(number: int) -> dict[str, Any]:
        spent["clock"] += 10.0
        spent["own"] += 3.0
        spent["machine"] += 3.0 + 10.0 * cores * next(foreign)
        return {"try": number}

    monkeypatch.setattr(disturbance.time, "perf_counter", lambda: spent["clock"])
    monkeypatch.setattr(disturbance, "busy", lambda: spent["machine"])
    found = disturbance.least_disturbed(measure, lambda: spent["own"])
    assert found == {"try": 1, "others": pytest.approx(0.5)}
    foreign = iter([0.05])
    assert disturbance.least_disturbed(measure, lambda: spent["own"])["try"] == 0


def test_engines_that_do_not_fit_together_are_grouped_around_the_reference() -> None:
    memory = {"vlmc int8": 1.0, "a": 3.0, "b": 4.0, "c": 2.0, "huge": 50.0, "d": 1.0}
    found = groups(memory, 8.0, "vlmc int8")
    assert [group[1:] for group in found] == [["a", "b"], ["c"], ["huge"], ["d"]]
    assert all(group[0] == "vlmc int8" for group in found)
    assert groups({"vlmc int8": 9.0}, 8.0, "vlmc int8") == [["vlmc int8"]]


TILES = """
#include <immintrin.h>
void configured(unsigned char rows) {
    struct { unsigned char bytes[64]; } config = {};
    config.bytes[48] = rows;
    _tile_loadconfig(&config);
}
void loaded(unsigned char value) {
    unsigned char tile[1024];
    tile[5] = value;
    _tile_loadd(0, tile, 64);
}
"""


@pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("g++") is None, reason="needs GCC for x86-64"
)
def test_what_a_tile_reads_is_stored_where_llama_cpp_is_compiled() -> None:
    words = ["-O3", "-mamx-tile", "-include", str(environment.TILES), "-S", "-xc++", "-o-", "-"]
    done = subprocess.run(["g++", *words], input=TILES, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("configured", "loaded"):
        body = done.stdout.partition(f"{name}h:")[2].partition(".cfi_endproc")[0]
        assert "%dil" in body or "%edi" in body


def test_llama_cpp_is_compiled_anew_with_the_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$CXXFLAGS $*" >&2; exit 1\n')
    python.chmod(0o755)
    monkeypatch.setenv("CXXFLAGS", "-g0")
    said = environment.llama_compiled(python)
    assert said.startswith(f"-g0 -include {environment.TILES} ")
    assert "--no-cache-dir" in said


@pytest.mark.slow
def test_a_quick_run_measures_vlmc_and_transformers(tmp_path: Path) -> None:
    words = ["--quick", "--engines", "vlmc int8,transformers fp32", "--cache", str(tmp_path / "c")]
    command = [sys.executable, "-m", "tests.benchmarks.rivals", *words, "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    engines = json.loads((tmp_path / "tiny.json").read_text())["engines"]
    assert engines.keys() == {"vlmc int8", "transformers fp32"}
    for figures in engines.values():
        assert "error" not in figures
        (only,) = figures["rounds"]
        assert only["steps"] == 4
        assert 0 < only["vision"] < only["ttft"]
        assert only["rows_tokens"] == 16
        assert figures["cold"][0]["start"] > only["ttft"]
    assert "| vlmc int8 |" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize("name", ["rivals", "build_memory", "real_size"])
def test_the_documented_commands_start(name: str) -> None:
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
