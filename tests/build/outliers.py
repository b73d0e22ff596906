"""Outlier channels put into a checkpoint without changing what it computes; what int8 loses then.

``python -m tests.build.outliers [PRECISION]`` prints the errors of the demo model's logits.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# What makes channels -> what reads them, as LLaVA's decoder and CLIP tower name them.
_PAIRS = (
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ("mlp.up_proj", ("mlp.down_proj",)),
    ("layer_norm1", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("layer_norm2", ("mlp.fc1",)),
    ("self_attn.v_proj", ("self_attn.o_proj", "self_attn.out_proj")),
)
_CHANNELS = 3
_FACTORS = (32, 64, 100)
_HEAD = 32  # of both towers of the demo model
DEMO = Path(__file__).parents[2] / "vlmc" / "demo" / "model"


def with_outliers(source: Path, folder: Path, seed: int = 0) -> Path:
    """A copy of the demo model in which a few channels of every layer are 32 to 100 times larger.

    Their rows are multiplied and the columns that read them divided, in float32: the function is
    the same to the last few bits.
    """
    from safetensors.numpy import load_file, save_file

    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    random = np.random.default_rng(seed)
    for name in sorted(weights):
        owner = name.removesuffix(".weight")
        for maker, readers in _PAIRS:
            if not name.endswith(f"{maker}.weight"):
                continue
            layer = owner.removesuffix(maker)
            matrices = [key for r in readers if (key := f"{layer}{r}.weight") in weights]
            width = len(weights[name])
            # Query heads share value heads: what reads a value channel lies once a group.
            size = width if "v_proj" not in maker else _HEAD
            chosen = random.choice(size, _CHANNELS, replace=False)
            for channel, factor in zip(chosen, _FACTORS, strict=True):
                _enlarge(weights, name, slice(int(channel), None, size), factor)
                for matrix in matrices:
                    weights[matrix][:, int(channel) :: size] /= np.float32(factor)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _enlarge(weights: dict[str, Array], name: str, rows: slice, factor: int) -> None:
    weights[name][rows] *= np.float32(factor)
    bias = name.removesuffix("weight") + "bias"
    if bias in weights:
        weights[bias][rows] *= np.float32(factor)


def per_tensor(rows: Array) -> Array:
    """Activations as ``DynamicQuantizeMatMul`` reads them: uint8, one scale for the matrix."""
    low, high = min(float(rows.min()), 0.0), max(float(rows.max()), 0.0)
    scale = np.float32((high - low) / 255) or np.float32(1)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    codes = np.clip(np.rint(rows / scale) + zero, 0, 255)
    return ((codes - zero) * scale).astype(np.float32)


def per_channel(weight: Array) -> Array:
    """A weight ``[N, K]`` of 8 bits, one scale for each output channel."""
    scale = np.abs(weight).max(axis=1, keepdims=True) / np.float32(127)
    restored: Array = np.rint(weight / np.where(scale > 0, scale, 1)) * scale
    return restored


@contextmanager
def dynamically_quantized(model: Any, layers: Callable[[str], bool]) -> Iterator[None]:
    """transformers' model with these linear layers as ``DynamicQuantizeMatMul`` has them."""
    import torch

    def read(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (torch.from_numpy(per_tensor(inputs[0].numpy())),)

    saved, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and layers(name):
            saved[module] = module.weight.data
            module.weight.data = torch.from_numpy(per_channel(module.weight.numpy()))
            hooks.append(module.register_forward_pre_hook(read))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, weight in saved.items():
            module.weight.data = weight


def error(found: Array, expected: Array) -> float:
    """Of logits ``[n, V]``: root mean square over rows of the error relative to their spread."""
    spread = expected - expected.mean(axis=-1, keepdims=True)
    wrong = np.square(found - expected).sum(axis=-1) / np.square(spread).sum(axis=-1)
    return float(np.sqrt(wrong.mean()))


def logit_errors(
    folder: Path, bundles: Mapping[str, Path | None], seeds: Iterable[int]
) -> dict[str, float]:
    """Errors of logits against transformers, on answers to held-out questions of the demo.

    Args:
        folder: The checkpoint.
        bundles: By name; None is transformers' own with ``DynamicQuantizeMatMul``'s arithmetic
            in every linear layer but the head.
        seeds: Of the pictures.
    """
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    from vlmc.demo.questions import one_of_each
    from vlmc.demo.world import render, scene
    from vlmc.runtime import load

    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    model = (
        LlavaForConditionalGeneration.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32
        )
        .eval()
        .requires_grad_(False)
    )
    opened = {k: load(v, threads=1, spin=False) for k, v in bundles.items() if v is not None}
    exact: list[Array] = []
    found: dict[str, list[Array]] = {name: [] for name in bundles}
    for seed in seeds:
        shown = scene(seed, split="held-out")
        picture = render(shown)
        for question in one_of_each(shown)[::3]:
            parts = [{"type": "image"}, {"type": "text", "text": question.question}]
            messages = [{"role": "user", "content": parts}]
            text = processor.apply_chat_template(messages, add_generation_prompt=True)
            given = processor(
                images=[picture], text=[text], add_special_tokens=False, return_tensors="pt"
            )
            answer = processor.tokenizer(question.answer, add_special_tokens=False).input_ids
            ids = torch.cat([given["input_ids"], torch.tensor([answer])], dim=1)
            pixels = given["pixel_values"]
            exact.append(_answer(model, ids, pixels, len(answer)))
            for name in bundles:
                if name in opened:
                    prompt = opened[name].prompt(messages, images=[picture])
                    found[name].append(opened[name].logits(prompt, answer))
                else:
                    with dynamically_quantized(model, lambda n: not n.endswith("lm_head")):
                        found[name].append(_answer(model, ids, pixels, len(answer)))
    right = np.concatenate(exact)
    return {name: error(np.concatenate(rows), right) for name, rows in found.items()}


def _answer(model: Any, ids: Any, pixels: Any, length: int) -> Array:
    import torch

    with torch.no_grad():
        logits: Array = model(input_ids=ids, pixel_values=pixels).logits[0, -length - 1 :].numpy()
    return logits


def main(precision: str = "int8") -> None:
    """Prints the errors of the plain and of the changed model, and how often outliers shrink."""
    from vlmc.compiler import build
    from vlmc.recipe import load_recipe

    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        models = {"plain": DEMO, "with outliers": with_outliers(DEMO, here / "outliers")}
        for title, model in models.items():
            bundles: dict[str, Path | None] = {"one scale for a matrix": None}
            for word, calibration in (("one for a token", "off"), ("calibrated", "auto")):
                path = here / f"{calibration}.yaml"
                path.write_text(
                    f"model: {model}\nctx-len: 512\n"
                    f"precision: {{language: {precision}, vision: int8}}\n"
                    f"quantize: {{calibration: {calibration}}}\n",
                    encoding="utf-8",
                )
                out, cache = here / title / calibration, here / "cache"
                made = build(load_recipe(path), at=str(path), out=out, cache=cache)
                bundles[word] = made.bundle
            for word, value in logit_errors(model, bundles, range(3_000_000, 3_000_020)).items():
                print(f"{title:<15} {word:<25} {value:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
