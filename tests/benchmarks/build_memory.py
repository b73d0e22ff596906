"""Peak memory and time of a build: ``python -m tests.benchmarks.build_memory [--big]``.

Makes a Qwen2-VL of about 1 GiB of random bfloat16 weights in four shards, builds it with a cache
of its own, and prints the most memory that each process of the build held, and each pass's time.

With ``--big`` the checkpoint has Qwen2-VL-7B's sizes (16.6 GB; with cache and bundle 34 GB of
disk); the time to read its shards from the disk and to write as much as the bundle has is printed
beside, and then a second build is made that changes ctx-len only. The first build reads the
shards from the disk too. ``--reference off`` builds without comparing with transformers.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.big_checkpoint import make_big_checkpoint
from tests.checkpoints import parts

MIB = 1 << 20
RAW = argparse.RawDescriptionHelpFormatter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--big", action="store_true", help="seven billion weights, 16.6 GB")
    parser.add_argument("--reference", choices=("auto", "off"), default="auto")
    parser.add_argument("--folder", type=Path, help="keep the checkpoint and the cache here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        make = make_big_checkpoint if options.big else make_checkpoint
        if not (folder / "model").exists():
            make(folder / "model")
        forget(folder)
        found = measure(folder, options.precision, options.reference)
        if options.big:
            forget(folder)
            found |= yardstick(folder)
            found["second build"] = measure(
                folder, options.precision, options.reference, ctx_len=2048
            )
        print(json.dumps(found, indent=2))


def measure(
    folder: Path, precision: str, reference: str = "auto", *, ctx_len: int = 1024
) -> dict[str, Any]:
    """Bytes of the checkpoint, seconds of each pass, and what each process held at most, in MiB.

    ``build`` and ``check`` count all pages of the build and of its check's process, mapped files
    too; ``build anonymous`` and ``check anonymous`` what is theirs alone.
    """
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"model: ./model\nprecision: {precision}\nctx-len: {ctx_len}\n"
        f"checks: {{reference: {reference}}}\n"
    )
    command = [sys.executable, "-m", "vlmc"]
    command += ["build", str(recipe), "--out", str(folder / "artifacts"), "--json"]
    environment = {**os.environ, "VLMC_CACHE": str(folder / "cache")}
    started = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        peaks: dict[int, tuple[int, int]] = {}
        while process.poll() is None:
            for pid in family(process.pid):
                before = peaks.get(pid, (0, 0))
                whole, own = memory(pid)
                peaks[pid] = max(before[0], whole), max(before[1], own)
            time.sleep(0.1)
        assert process.stdout is not None
        made = process.stdout.read()
    if process.returncode:
        raise SystemExit(process.returncode)
    seconds = time.perf_counter() - started
    build = peaks.pop(process.pid)
    check = max(peaks.values(), default=(0, 0))
    passes = json.loads(made)["passes"]
    return {
        "checkpoint": sum(path.stat().st_size for path in (folder / "model").iterdir()),
        "precision": precision,
        "build": build[0] // MIB,
        "build anonymous": build[1] // MIB,
        "check": check[0] // MIB,
        "check anonymous": check[1] // MIB,
        "seconds": round(seconds, 1),
        "passes": {one["name"]: one["seconds"] for one in passes if not one["cache_hit"]},
    }


def forget(folder: Path) -> None:
    """Has the system let go of what it remembers of the folder's files (Linux)."""
    for path in folder.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)
    time.sleep(6)  # a virtual machine gives memory back, and gets it again, as after a start


def yardstick(folder: Path) -> dict[str, Any]:
    """Seconds to read the shards, and to write as many bytes as the bundle has to the disk."""
    block = mmap.mmap(-1, 1 << 24)  # some CPUs copy slowly to where a bytearray begins
    started = time.perf_counter()
    for path in sorted((folder / "model").glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass
    read = time.perf_counter() - started
    bundle = next((folder / "artifacts").glob("*/latest")).resolve()
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    copy = folder / "yardstick"
    started = time.perf_counter()
    with copy.open("wb", buffering=0) as file:
        for _ in range(size // len(block)):
            file.write(block)
        os.fsync(file.fileno())
    written = time.perf_counter() - started
    copy.unlink()
    return {"bundle": size, "read shards": round(read, 1), "write bundle": round(written, 1)}


def make_checkpoint(folder: Path) -> None:
    """A Qwen2-VL of 0.6 billion random weights: wide tables, 14 layers, a tower of 8."""
    import torch
    import transformers as hf

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>"]
    specials += ["<|vision_start|>", "<|vision_end|>"]
    words = parts.tokenizer(specials, bos=None, eos="<|im_end|>", template=parts.CHATML)
    text = parts.text_config(
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


def memory(pid: int) -> tuple[int, int]:
    """The most a process held so far, and what it holds alone now, in bytes; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0
    found = dict(re.findall(r"(VmHWM|RssAnon):\s+(\d+) kB", status))
    return int(found.get("VmHWM", 0)) * 1024, int(found.get("RssAnon", 0)) * 1024


if __name__ == "__main__":
    main()
