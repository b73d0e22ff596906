"""``vlmc bench``: what an answer costs here, stage by stage."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from vlmc.cli.notice import tell_portable
from vlmc.cli.sizes import size_text
from vlmc.errors import VlmcError
from vlmc.machine import peak_memory
from vlmc.schema import Json

STAGES = ("preprocess", "vision", "prefill", "decode", "ttft")
_ENTRY = "import sys; from vlmc.cli import main; sys.exit(main())"


def bench(
    bundle: Annotated[Path, typer.Argument(help="A version folder, or a NAME folder.")],
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", help="A picture; repeat for more [default: a generated one]."),
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt", help="The question.")] = "Describe this.",
    text_only: Annotated[bool, typer.Option("--text-only", help="Without a picture.")] = False,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", help="Tokens of each answer.")
    ] = 32,
    rounds: Annotated[int, typer.Option("--rounds", help="Answers measured, after one more.")] = 5,
    threads: Annotated[
        int | None, typer.Option("--threads", help="Threads [default: physical cores].")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure time to first token, decode rate, cold start and peak memory.

    Medians over the rounds, one warm-up round left out. The cold start is a fresh process that
    prints one token; its memory is that process's peak.
    """
    if rounds < 1:
        raise VlmcError(f"{rounds} rounds measure nothing", at="--rounds")
    if text_only and image:
        raise VlmcError("--text-only and --image exclude each other", at="--text-only")
    from vlmc.bundle.store import read_bundle

    read_bundle(bundle)  # a wrong folder is said here, not by the fresh process
    with tempfile.TemporaryDirectory() as folder:
        pictures = [] if text_only else list(image or [_picture(Path(folder))])
        cold = _cold_start(bundle, pictures, prompt, threads)
        report = _measure(bundle, pictures, prompt, max_new_tokens, rounds, threads)
    report["cold_start"] = cold
    if as_json:
        print(json.dumps(report))
    else:
        for line in _lines(report, cold):
            print(line)


def _measure(
    bundle: Path,
    pictures: Sequence[Path],
    prompt: str,
    max_new_tokens: int,
    rounds: int,
    threads: int | None,
) -> Json:
    from vlmc.runtime import load

    model = load(bundle, threads=threads, reuse=False)
    tell_portable(model)
    answers = []
    processor: list[float] = []
    wall: list[float] = []
    for _ in range(rounds + 1):
        started, used = time.perf_counter(), time.process_time()
        answer = model.generate(
            prompt=prompt, images=pictures, max_new_tokens=max_new_tokens, ignore_eos=True
        )
        wall.append(time.perf_counter() - started)
        processor.append(time.process_time() - used)
        answers.append(answer)
    timings = [asdict(answer.timings) for answer in answers[1:]]
    stages = {stage: median(row[stage] for row in timings) for stage in STAGES}
    later = max_new_tokens - 1
    usage = answers[-1].usage
    prefill = stages["prefill"]
    return {
        "bundle": str(model.bundle.folder),
        "threads": model.engine.threads,
        "spin": model.engine.spin,
        "kernels": model.engine.kernels,
        "rounds": rounds,
        "usage": asdict(usage),
        "load": timings[-1]["load"],
        "seconds": stages,
        "best": {stage: min(row[stage] for row in timings) for stage in STAGES},
        "wall": median(wall[1:]),
        "cpu": median(processor[1:]),
        "prefill_rate": usage.prompt_tokens / prefill if prefill else None,
        "decode_rate": later / stages["decode"] if later and stages["decode"] else None,
        "kv_cache": model.engine.cache.nbytes,
    }


def _cold_start(bundle: Path, pictures: Sequence[Path], prompt: str, threads: int | None) -> Json:
    """A fresh process that answers with one token: seconds until it ends, and its peak."""
    words = ["run", str(bundle), "--prompt", prompt, "--max-new-tokens", "1", "--json"]
    for picture in pictures:
        words += ["--image", str(picture)]
    if threads is not None:
        words += ["--threads", str(threads)]
    with tempfile.TemporaryFile() as complaints:
        started = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, "-c", _ENTRY, *words], stdout=subprocess.PIPE, stderr=complaints
        )
        with child.stdout as pipe:  # type: ignore[union-attr]
            output = pipe.read()
        # wait4, not wait: it alone gives this one child's peak memory.
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        complaints.seek(0)
        said = complaints.read().decode(errors="replace").strip()
    if child.returncode == 2:  # what it said is what is wrong; a note may stand before it
        raise VlmcError(said.partition("error: ")[2])
    if child.returncode:
        raise VlmcError(f"the fresh process failed: {said}")
    timings = json.loads(output)["timings"]
    return {
        "wall": seconds,
        "cpu": usage.ru_utime + usage.ru_stime,
        "load": timings["load"],
        "ttft": timings["ttft"],
        "peak_memory": peak_memory(usage),
    }


def _picture(folder: Path) -> Path:
    """A smooth picture of 640 x 480, the same each time."""
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[0:480, 0:640]
    waves = [np.sin(x / 37 + turn) + np.cos(y / 53 - turn) for turn in (0, 1, 2)]
    levels = np.stack(waves, axis=-1) * 60 + 128
    path = folder / "picture.png"
    Image.fromarray(levels.astype(np.uint8)).save(path)
    return path


def _lines(report: Json, cold: Json) -> list[str]:
    def rows(values: object, form: Callable[[float], str]) -> list[str]:
        assert isinstance(values, dict)
        return [f"  {name:<12} {form(value)}" for name, value in values.items()]

    def seconds(value: float) -> str:
        return f"{value * 1000:10.1f} ms"

    usage, rate = report["usage"], report["decode_rate"]
    assert isinstance(usage, dict)
    speed = f"{rate:.1f} tokens/s" if isinstance(rate, float) else "not measured"
    peak = cold["peak_memory"]
    assert isinstance(peak, int)
    return [
        f"{report['bundle']}: {report['threads']} threads, median of {report['rounds']}",
        f"  computed by {report['kernels']}",
        f"  {usage['prompt_tokens']} prompt tokens ({usage['image_tokens']} of images), "
        f"{usage['completion_tokens']} generated",
        *rows(report["seconds"], seconds),
        f"  decode rate  {speed}",
        *rows({"answer": report["wall"], "answer cpu": report["cpu"]}, seconds),
        "a fresh process, one token",
        *rows({"wall": cold["wall"], "cpu": cold["cpu"], "ttft": cold["ttft"]}, seconds),
        f"  peak memory  {size_text(peak)}",
    ]
