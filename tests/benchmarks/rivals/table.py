"""From raw rounds to a Markdown table: medians, ratios within one round, shares of the limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from tests.benchmarks.rivals.disturbance import TOLERATED

Round = Mapping[str, Any]
MIB = 1 << 20


@dataclass(frozen=True)
class Figure:
    """One column.

    Attributes:
        title: Its heading.
        kind: Which list of an engine it is read from: ``rounds`` or ``cold``.
        read: Its value in one round; None where that round lacks it.
        form: How it is printed.
        rate: More is better.
        compared: Whether the ratio to the reference stands beside it.
    """

    title: str
    kind: str
    read: Callable[[Round], float | None]
    form: str = "{:.2f}"
    rate: bool = False
    compared: bool = False


def _prefill(row: Round) -> float:
    return float(row["prompt_tokens"] / (row["ttft"] - (row["vision"] or 0.0)))


def _decode(row: Round) -> float:
    return float(row["steps"] / row["decode"])


def _cached(row: Round) -> float:
    """Tokens of the cache that are read in a second, half of the answer being there."""
    return float((row["prompt_tokens"] + row["steps"] / 2) * _decode(row))


def _first(row: Round) -> float | None:
    return None if row["vision"] is None else float(row["ttft"])


def _rows(row: Round) -> float | None:
    return row["rows_tokens"] / row["rows_seconds"] if "rows_seconds" in row else None


PREFILL = Figure("prefill, tok/s", "rounds", _prefill, "{:.0f}", rate=True, compared=True)
DECODE = Figure("decode, tok/s", "rounds", _decode, "{:.1f}", rate=True, compared=True)
_CACHED = Figure("cache, tok/s", "rounds", _cached, rate=True)
FIGURES = (
    Figure("first token, s", "rounds", _first, compared=True),
    Figure("vision, s", "rounds", lambda row: row["vision"]),
    PREFILL,
    DECODE,
    Figure("4 rows, tok/s", "rounds", _rows, "{:.1f}", rate=True),
    Figure("CPU, s", "rounds", lambda row: row["ttft_cpu"] + row["decode_cpu"]),
    Figure("peak of rows, MiB", "rounds", lambda row: row["peak"] / MIB, "{:.0f}"),
    Figure("cold start, s", "cold", lambda row: row["start"], "{:.1f}"),
    Figure("peak, MiB", "cold", lambda row: row["peak"] / MIB, "{:.0f}"),
)


def table(engines: Mapping[str, Mapping[str, Any]], reference: str) -> str:
    """One row per engine: median (best), and the ratio to ``reference`` where it is compared.

    The ratio is the median over the rounds in which both were measured; above 1, ``reference``
    is better. An engine without figures keeps its row, with the reason.
    """
    heads = [
        "engine",
        *(figure.title for figure in FIGURES),
        "size, MiB",
        "build, CPU s",
        "build, MiB",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    reasons = []
    for name, engine in engines.items():
        cells = [_cell(figure, engine, engines.get(reference)) for figure in FIGURES]
        built = engine.get("build") or {}
        cells.append(f"{engine['size'] / MIB:.0f}" if "size" in engine else "-")
        cells.append(f"{built['cpu']:.0f}" if built else "-")
        cells.append(f"{built['peak'] / MIB:.0f}" if built else "-")
        if "error" in engine:
            reasons.append(f"- {name}: {_short(engine['error'])}")
            name += " (failed, see below)"
        lines.append("| " + " | ".join([name, *cells]) + " |")
    disturbed = [name for name, one in engines.items() if one["rounds"] and not _quiet(one)]
    if disturbed:
        reasons.insert(0, f"- others took more than a tenth of the machine: {', '.join(disturbed)}")
    return "\n".join([*lines, *(["", *reasons] if reasons else [])])


def values(figure: Figure, engine: Mapping[str, Any]) -> dict[int, float]:
    """A figure by number of round; disturbed rounds are left out where there are others."""
    rows = engine[figure.kind]
    quiet = [row for row in rows if row.get("others", 0.0) <= TOLERATED]
    found = {row["round"]: figure.read(row) for row in quiet or rows}
    return {number: value for number, value in found.items() if value is not None}


def ratio(figure: Figure, engine: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    """How many times better ``other`` is, in the rounds both have."""
    mine, theirs = values(figure, engine), values(figure, other)
    shared = sorted(mine.keys() & theirs.keys())
    if not shared:
        return None
    pairs = ((mine[number], theirs[number]) for number in shared)
    return median(b / a if figure.rate else a / b for a, b in pairs)


def _cell(figure: Figure, engine: Mapping[str, Any], other: Mapping[str, Any] | None) -> str:
    found = list(values(figure, engine).values())
    if not found:
        return "-"
    best = max(found) if figure.rate else min(found)
    middle = figure.form.format(median(found))
    cell = middle if len(found) == 1 else f"{middle} ({figure.form.format(best)})"
    against = ratio(figure, engine, other) if figure.compared and other is not None else None
    return cell if against is None else f"{cell} {against:.2f}x"


def _quiet(engine: Mapping[str, Any]) -> bool:
    return any(row.get("others", 0.0) <= TOLERATED for row in engine["rounds"])


def _short(reason: str) -> str:
    line = " ".join(reason.split())
    return line if len(line) <= 300 else line[:300] + "..."


@dataclass(frozen=True)
class Decoder:
    """What a decoder must do for one token.

    Attributes:
        layers: Weights in the products of its layers.
        head: Weights of its head.
        cached: Numbers that it keeps of each token before.
    """

    layers: int
    head: int
    cached: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Decoder:
        """From a Llama-like decoder's configuration."""
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        size = config.get("head_dim") or hidden // heads
        keys = config["num_key_value_heads"] * size
        attention = 2 * hidden * heads * size + 2 * hidden * keys
        layer = attention + 3 * hidden * config["intermediate_size"]
        count = config["num_hidden_layers"]
        return cls(layer * count, hidden * config["vocab_size"], 2 * keys * count)

    def read(self, precision: str) -> float:
        """Least bytes of weights one decoded token reads; scales are left out."""
        layers, head = {
            "fp32": (4, 4),
            "int8": (1, 1),
            "int4": (0.5, 1),
            "int4 tables": (0.5, 0.5),
        }[precision]
        return self.layers * layers + self.head * head


def shares(
    engines: Mapping[str, Mapping[str, Any]],
    limits: Sequence[Mapping[str, float]],
    decoder: Decoder,
) -> str:
    """The limits, and how near to them each precision of vlmc comes within one round."""
    if not limits:
        return (
            "The machine's limits are unknown: they were not measured, or there is no C++ compiler."
        )
    best = {name: max(one.get(name, 0.0) for one in limits) for name in limits[0]}
    steady = median(one.get("steady", one["read"]) for one in limits)
    lines = [
        f"Limits measured beside it (best of {len(limits)}): reading memory "
        f"{best['read_1'] / 1e9:.1f} GB/s with one thread, {best['read'] / 1e9:.1f} with all "
        f"({steady / 1e9:.1f} steadily); fp32 {best['fp32'] / 1e9:.0f} GFLOPS; int8 "
        + (f"{best['int8'] / 1e9:.0f} GOPS" if best.get("int8") else "unknown (no AVX2)")
        + (f", by tiles {best['tiles'] / 1e9:.0f}." if best.get("tiles") else "."),
        "",
    ]
    for name, engine in engines.items():
        if name.startswith("vlmc ") and engine["rounds"]:
            lines.append(_share(name, engine, best, limits, decoder))
    return "\n".join(lines)


def _share(
    name: str,
    engine: Mapping[str, Any],
    best: Mapping[str, float],
    limits: Sequence[Mapping[str, float]],
    decoder: Decoder,
) -> str:
    precision = name.removeprefix("vlmc ")
    kind = "fp32" if precision == "fp32" else "int8"
    rates, cached = values(DECODE, engine), values(_CACHED, engine)
    read = {number: decoder.read(precision) * rate for number, rate in rates.items()}
    # The cache of every round is in float32.
    both = {number: read[number] + 4 * decoder.cached * cached[number] for number in read}
    operations = 2 * decoder.layers * median(values(PREFILL, engine).values())
    beside = {int(one["round"]): one for one in limits if "round" in one}

    def share(found: Mapping[int, float], steadily: bool) -> str:
        def given(number: int) -> float:
            one = beside.get(number, best)
            most = max(one["read"], one["read_1"])
            return one.get("steady", most) if steadily else most

        return f"{median(value / given(number) for number, value in found.items()):.0%}"

    line = f"- {name}: decode reads {median(read.values()) / 1e9:.1f} GB/s of weights, "
    line += f"{share(read, False)} of what memory gives at best in the same round and "
    line += f"{share(read, True)} of what it gives steadily ({share(both, False)} and "
    line += f"{share(both, True)} with the cache); prefill does "
    line += f"{operations / 1e9:.0f} G products and sums a second"
    peaks = {f"the peak of {kind}": best.get(kind)}
    if kind == "int8":
        peaks["that of its tiles"] = best.get("tiles")
    parts = [f"{operations / peak:.0%} of {what}" for what, peak in peaks.items() if peak]
    return ", ".join([line, *parts]) + "."
