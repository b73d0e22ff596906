"""Trains the demo model: `python -m vlmc.demo.train --out DIR`.

Every picture is encoded once for all its questions. In the first stage two extra heads on top of
the vision tower name the shape and the letter in each patch; they teach the tower to see quickly
and are left out of the model.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlmc.demo.batches import Batch, Batcher
from vlmc.demo.folder import IMAGE, build_model, build_processor, build_tokenizer, save_folder
from vlmc.demo.world import COLOURS, LETTERS, SHAPES

ROWS = 32
"""Pictures in a step."""

TURNS = 8
"""Questions about a picture in a step, at most."""


class Stage(NamedTuple):
    """A part of training: `steps` steps from `first_step` on, with a fresh optimizer.

    The learning rate rises to `rate` and falls as if there were `planned` steps.
    """

    first_step: int
    steps: int
    planned: int
    rate: float
    loose: bool
    heads: bool


STAGES = (
    Stage(first_step=0, steps=6500, planned=7500, rate=2e-3, loose=True, heads=True),
    Stage(first_step=7500, steps=1200, planned=1200, rate=5e-4, loose=False, heads=False),
)


def main() -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the trained model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--first-stage", type=int, default=1, help="2: goes on from --after")
    parser.add_argument("--after", type=Path, help="model folder that an earlier stage left")
    train(parser.parse_args())


def train(options: argparse.Namespace) -> None:
    """Runs the stages, saving a whole model folder now and then and at the end."""
    import torch
    from transformers import LlavaForConditionalGeneration

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    processor = build_processor(tokenizer)
    if options.after:
        model = LlavaForConditionalGeneration.from_pretrained(options.after)
    else:
        model = build_model()
    _attend_in_fp32(model)
    model.train()
    for stage in STAGES[options.first_stage - 1 :]:
        batcher = Batcher(tokenizer, ROWS, TURNS, loose=stage.loose)
        for done in _steps(stage, model, batcher):
            if done % options.save_every == 0 or done == stage.steps:
                save_folder(model, processor, options.out)


def _steps(stage: Stage, model: Any, batcher: Batcher) -> Any:
    """Trains a stage step by step, yielding how many are done; prints the mean of every 50."""
    import torch

    classes = (1 + len(COLOURS) * len(SHAPES), 1 + len(LETTERS)) if stage.heads else ()
    width = model.config.vision_config.hidden_size
    heads = torch.nn.ModuleList(torch.nn.Linear(width, count) for count in classes)
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.05},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=stage.rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    start, seen = time.perf_counter(), []
    for step in range(stage.steps):
        for group in optimizer.param_groups:
            group["lr"] = stage.rate * _schedule(step, stage.planned)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, parts = _loss(model, heads, batcher.batch(stage.first_step + step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen.append(parts)
        if (step + 1) % 50 == 0:
            seconds = round(time.perf_counter() - start)
            figures = {name: round(float(np.mean([p[name] for p in seen])), 4) for name in parts}
            print(json.dumps({"step": step + 1, "seconds": seconds, **figures}), flush=True)
            seen = []
        yield step + 1


def _attend_in_fp32(model: Any) -> None:
    """Keeps attention out of bf16, whose backward kernel is slow on processors."""
    import torch
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def attend(module: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> Any:
        with torch.autocast("cpu", enabled=False):
            whole = (query.float(), key.float(), value.float())
            return sdpa_attention_forward(module, *whole, *rest, **options)

    AttentionInterface.register("sdpa_fp32", attend)
    model.set_attn_implementation("sdpa_fp32")


def _schedule(step: int, steps: int) -> float:
    """The share of the highest rate: a short rise, then half a cosine down to 1 %."""
    rise = min(300, steps // 10 + 1)
    if step < rise:
        return (step + 1) / rise
    done = (step - rise) / max(1, steps - rise)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


def _loss(model: Any, heads: Any, batch: Batch) -> tuple[Any, dict[str, float]]:
    """The loss of a batch, and its parts: answers, patches' shapes, patches' letters."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    pixels = torch.from_numpy(batch.pixels).permute(0, 3, 1, 2) * (1 / 255)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    tower = model.model.vision_tower((pixels - mean) / std, output_hidden_states=True)
    ids = torch.from_numpy(batch.ids)
    features = model.model.multi_modal_projector(tower.hidden_states[-2][:, 1:])
    embeddings = model.get_input_embeddings()(ids)
    here = (ids == IMAGE)[:, :, None]
    embeddings = embeddings.masked_scatter(here, features.to(embeddings.dtype))
    hidden = model.model.language_model(
        inputs_embeds=embeddings,
        attention_mask=torch.from_numpy(batch.mask),
        position_ids=torch.from_numpy(batch.positions),
        use_cache=False,
    ).last_hidden_state
    targets = torch.from_numpy(batch.targets)
    asked = targets != -100
    logits = model.lm_head(hidden[asked]).float()
    loss = cross_entropy(logits, targets[asked])
    right = (logits.argmax(-1) == targets[asked]).float().mean()
    parts = {"answer": loss.item(), "right": right.item()}
    top = model.model.vision_tower.post_layernorm(tower.last_hidden_state[:, 1:])
    labels = {"things": batch.things, "letters": batch.letters}
    for head, (name, expected) in zip(heads, labels.items(), strict=False):
        side = cross_entropy(head(top).float().flatten(0, 1), torch.from_numpy(expected).flatten())
        parts[name] = side.item()
        loss = loss + side
    return loss, parts


if __name__ == "__main__":
    main()
