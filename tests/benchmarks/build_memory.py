"""Peak memory of a build: ``python -m tests.benchmarks.build_memory [--precision int4]``.

Makes a Qwen2-VL of about 1 GiB of random bfloat16 weights in four shards, builds it with a cache
of its own, and prints the most memory that each process of the build held.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests import checkpoints

MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", default="int4")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(measure(Path(name), options.precision), indent=2))


def measure(folder: Path, precision: str) -> dict[str, Any]:
    """Bytes of the checkpoint, and peak memory in MiB of the build and of its check's process."""
    make_checkpoint(folder / "model")
    recipe = folder / "recipe.yaml"
    recipe.write_text(f"model: ./model\nprecision: {precision}\nctx-len: 1024\n")
    command = [sys.executable, "-c", "from vlmc.cli import main; raise SystemExit(main())"]
    command += ["build", str(recipe), "--out", str(folder / "artifacts")]
    environment = {**os.environ, "VLMC_CACHE": str(folder / "cache")}
    started = time.perf_counter()
    with subprocess.Popen(command, env=environment) as process:
        peaks: dict[int, int] = {}
        while process.poll() is None:
            for pid in family(process.pid):
                peaks[pid] = max(peaks.get(pid, 0), high_water(pid))
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(process.returncode)
    own = peaks.pop(process.pid)
    return {
        "checkpoint": sum(path.stat().st_size for path in (folder / "model").iterdir()),
        "precision": precision,
        "build": own // MIB,
        "check": max(peaks.values(), default=0) // MIB,
        "seconds": round(time.perf_counter() - started, 1),
    }


def make_checkpoint(folder: Path) -> None:
    """A Qwen2-VL of 0.6 billion random weights: wide tables, 14 layers, a tower of 8."""
    import torch
    import transformers as hf

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>"]
    specials += ["<|vision_start|>", "<|vision_end|>"]
    words = checkpoints.tokenizer(specials, bos=None, eos="<|im_end|>", template=checkpoints.CHATML)
    text = checkpoints.text_config(
        "qwen2_vl_text",
        100_000,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=14,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=128,
    )
    config = hf.Qwen2VLConfig(
        vision_config={"depth": 8, "embed_dim": 1280, "hidden_size": 1024, "num_heads": 16},
        text_config=text,
        image_token_id=3,
        video_token_id=4,
        vision_start_token_id=5,
        vision_end_token_id=6,
        tie_word_embeddings=False,
    )
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = hf.Qwen2VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(torch.float32)
    random = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02, generator=random)
        if parameter.dim() == 1:
            parameter.data += 1
    model.save_pretrained(folder, max_shard_size="400MB")
    hf.Qwen2VLImageProcessorPil().save_pretrained(folder)
    words.save_pretrained(folder)


def family(pid: int) -> list[int]:
    """A process and its descendants (Linux)."""
    found = [pid]
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return found
    return found + [one for child in children for one in family(int(child))]


def high_water(pid: int) -> int:
    """The most memory a process held so far, in bytes; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    main()
