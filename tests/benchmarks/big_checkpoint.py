"""A checkpoint of seven billion random weights, written shard by shard and never held."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.checkpoints import parts

SHARD_BYTES = 4 << 30
# Values are cut out of one pool, each tensor from another place of it: numbers are not the point.
_POOL = 1 << 24
_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>"]
_SPECIALS += ["<|vision_start|>", "<|vision_end|>"]


def make_big_checkpoint(folder: Path, *, layers: int = 28, depth: int = 32) -> int:
    """A Qwen2-VL of Qwen2-VL-7B's sizes in bfloat16; returns the bytes of its shards.

    Args:
        folder: Made; 16.6 GB at full depth.
        layers: Of the decoder.
        depth: Layers of the tower.
    """
    import torch
    import transformers as hf

    words = parts.tokenizer(_SPECIALS, bos=None, eos="<|im_end|>", template=parts.CHATML)
    rotary = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    text = parts.text_config(
        "qwen2_vl_text",
        152_064,
        rope_parameters=rotary,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=layers,
        num_attention_heads=28,
        num_key_value_heads=4,
    )
    config = hf.Qwen2VLConfig(
        vision_config={"depth": depth, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16},
        text_config=text,
        image_token_id=_SPECIALS.index("<|image_pad|>"),
        video_token_id=_SPECIALS.index("<|video_pad|>"),
        vision_start_token_id=_SPECIALS.index("<|vision_start|>"),
        vision_end_token_id=_SPECIALS.index("<|vision_end|>"),
        tie_word_embeddings=False,
        architectures=["Qwen2VLForConditionalGeneration"],
    )
    with torch.device("meta"):
        model = hf.Qwen2VLForConditionalGeneration(config)
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    hf.Qwen2VLImageProcessorPil().save_pretrained(folder)
    words.save_pretrained(folder)
    return write_shards(folder, {n: tuple(p.shape) for n, p in model.named_parameters()})


def write_shards(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Random bfloat16 tensors as safetensors shards with their index; returns their bytes."""
    rows = np.random.default_rng(0).normal(0, 0.02, _POOL).astype(np.float32)
    pool = {False: _bfloat16(rows), True: _bfloat16(rows + 1)}
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    held = 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        if shards[-1] and held + size > SHARD_BYTES:
            shards.append({})
            held = 0
        shards[-1][name] = shape
        held += size
    weight_map: dict[str, str] = {}
    total = 0
    for at, shard in enumerate(shards):
        file = f"model-{at + 1:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(shard, file)
        with (folder / file).open("wb") as out:
            out.write(_header(shard))
            for number, shape in enumerate(shard.values()):
                for piece in _cut(pool[len(shape) == 1], int(np.prod(shape)), 7919 * number):
                    out.write(piece.data)
            total += out.tell()
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return total


def _header(shard: Mapping[str, tuple[int, ...]]) -> bytes:
    entries: dict[str, Any] = {}
    end = 0
    for name, shape in shard.items():
        begin, end = end, end + 2 * int(np.prod(shape))
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bfloat16(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float32 cut to its upper halves."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def _cut(pool: np.ndarray[Any, Any], count: int, start: int) -> Iterator[np.ndarray[Any, Any]]:
    while count:
        start %= len(pool)
        piece = pool[start : start + count]
        yield piece
        count -= len(piece)
        start += len(piece)
