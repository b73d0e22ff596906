"""Measures a model folder in fp32: `python -m vlmc.demo.evaluate [--model DIR] [--pictures N]`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from vlmc.demo.score import HELD_OUT_SEED, Answerer, score

MODEL_FOLDER = Path(__file__).parent / "model"
"""The folder of the model that comes with the package."""


def main() -> None:
    """Prints one JSON object: the share of right answers overall and per kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER)
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED, help="seed of the first one")
    parser.add_argument("--misses", type=int, default=10, help="wrong answers to list, at most")
    options = parser.parse_args()
    result = score(
        transformers_answers(options.model), pictures=options.pictures, seed=options.seed
    )
    result["misses"] = result["misses"][: options.misses]
    print(json.dumps(result, indent=2))


def transformers_answers(folder: Path) -> Answerer:
    """Loads a model folder in fp32 with transformers, and answers greedily with it."""
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    model = LlavaForConditionalGeneration.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32
    ).eval()

    @torch.inference_mode()
    def answers(image: Image.Image, questions: Sequence[str]) -> list[str]:
        prompts = [
            processor.apply_chat_template(
                [
                    {
                        "role": "user",
                        "content": [{"type": "image"}, {"type": "text", "text": question}],
                    }
                ],
                add_generation_prompt=True,
            )
            for question in questions
        ]
        inputs = processor(
            images=[image] * len(prompts),
            text=prompts,
            padding=True,
            add_special_tokens=False,
            return_tensors="pt",
        )
        generated = model.generate(**inputs, do_sample=False, max_new_tokens=64)
        new = generated[:, inputs["input_ids"].shape[1] :]
        decoded: list[str] = processor.batch_decode(new, skip_special_tokens=True)
        return decoded

    return answers


if __name__ == "__main__":
    main()
