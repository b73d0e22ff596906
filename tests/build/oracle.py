"""transformers, loaded the ordinary way, as the judge of built bundles."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.build.torch_images import Cohere2VisionImages, Llama4Images

TOKENS = 24
TORCH_IMAGES = {
    "Cohere2VisionImageProcessor": Cohere2VisionImages,
    "Llama4ImageProcessor": Llama4Images,
}
SETTINGS = ("image_seq_length", "patch_size", "pixel_shuffle_ratio")


@dataclass(frozen=True)
class Expected:
    """``token_ids`` are greedy, an end token left out; ``logits`` [24, V] go past it."""

    prompt_token_ids: list[int]
    features: list[np.ndarray]
    token_ids: list[int]
    forced: list[int]
    logits: np.ndarray


class Oracle:
    """A folder's model in float32 with eager attention, and its processor."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForImageTextToText

        model: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
        )
        self.model = model.eval()
        self.processor = make_processor(folder)
        self.image_text = getattr(self.processor, "image_token", "")

    def answer(self, messages: list[dict[str, Any]], pictures: list[Any]) -> Expected:
        """``pictures`` are PIL images, in the order of the messages' image parts.

        Raises:
            ValueError: The processor takes no such question.
        """
        import torch

        if self.processor.chat_template is None:
            if len(messages) > 1:
                raise ValueError("turns are a template's")
            text = "".join(part.get("text", self.image_text) for part in messages[0]["content"])
            given = {"text": [text], "images": pictures or None, "return_tensors": "pt"}
            return self.continue_(self.processor(**given), pictures, torch)

        waiting = iter(pictures)
        filled = [
            message
            if isinstance(message["content"], str)
            else {
                **message,
                "content": [
                    {"type": "image", "image": next(waiting)} if p["type"] == "image" else p
                    for p in message["content"]
                ],
            }
            for message in messages
        ]
        inputs = self.processor.apply_chat_template(
            filled, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        return self.continue_(inputs, pictures, torch)

    def rows(self, found: Any, pictures: list[Any]) -> list[np.ndarray]:
        """The features of each picture, which transformers may give in one, or tile by tile."""
        counts = []
        for one in pictures:
            alone = self.processor(text=[self.processor.image_token], images=[one])
            counts.append(list(alone["input_ids"][0]).count(self.model.config.image_token_id))
        together = np.concatenate([part.numpy() for part in found])
        assert sum(counts) == len(together)
        return np.split(together, np.cumsum(counts)[:-1])

    def continue_(self, inputs: Any, pictures: list[Any], torch: Any) -> Expected:
        length = inputs["input_ids"].shape[1]
        own = {"do_sample": False, "max_new_tokens": TOKENS, "num_beams": 1}
        with torch.no_grad():
            features = []
            if pictures:
                wanted = ("pixel_values", "pixel_attention_mask", "image_grid_thw", "image_sizes")
                given = {key: inputs[key] for key in wanted if key in inputs}
                made = features_of(self.model)(**given, return_dict=True)
                if made.pooler_output is None:  # Llama 4 leaves the projector to its caller
                    made.pooler_output = self.model.multi_modal_projector(made.last_hidden_state)
                found = feature_rows(made)
                features = self.rows(found, pictures)
            tokens = self.model.generate(**inputs, **own)[0, length:].tolist()
            ends = self.model.generation_config.eos_token_id
            ends = ends if isinstance(ends, list) else [ends]
            made = self.model.generate(
                **inputs,
                **own,
                min_new_tokens=None,
                eos_token_id=-1,
                output_logits=True,
                return_dict_in_generate=True,
            )
        return Expected(
            prompt_token_ids=inputs["input_ids"][0].tolist(),
            features=features,
            token_ids=tokens[:-1] if tokens[-1] in ends else tokens,
            forced=made.sequences[0, length:].tolist(),
            logits=torch.cat(made.logits).numpy(),
        )


def features_of(model: Any) -> Any:
    """``get_image_features`` of the model, or of the one inside."""
    return getattr(model, "get_image_features", None) or model.model.get_image_features


def feature_rows(made: Any) -> Any:
    """What ``get_image_features`` gives for each picture, deep-stack features beside the rest."""
    import torch

    deep = getattr(made, "deepstack_features", None)
    if not deep:
        return made.pooler_output
    return [torch.cat(parts, dim=-1) for parts in zip(made.pooler_output, *deep, strict=True)]


def make_processor(folder: Path) -> Any:
    """The folder's processor with the PIL image classes; Qwen2-VL's without its video part."""
    from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    try:
        made = AutoProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
        made.chat_template = made.chat_template or made.tokenizer.chat_template
        return made
    except (ImportError, ValueError) as error:
        if isinstance(error, ValueError) and "video processor" not in str(error):
            raise
        known = PROCESSOR_MAPPING[type(AutoConfig.from_pretrained(folder))]

    class WithoutVideo(known):  # type: ignore[misc, valid-type]
        def check_argument_for_proper_class(self, name: str, argument: Any) -> type:
            return type(argument)

    words = AutoTokenizer.from_pretrained(folder)
    if known.__name__ == "SmolVLMProcessor":
        return make_smolvlm(folder, WithoutVideo, words)
    template = folder / "chat_template.jinja"
    saved = folder / "processor_config.json"
    settings = json.loads(saved.read_text("utf-8")) if saved.is_file() else {}
    return WithoutVideo(
        image_processor=make_images(folder, AutoImageProcessor),
        tokenizer=words,
        video_processor=None,
        chat_template=template.read_text("utf-8") if template.is_file() else words.chat_template,
        **{key: settings[key] for key in SETTINGS if key in settings},
    )


def make_images(folder: Path, auto: Any) -> Any:
    """The folder's image processor; one that asks for torchvision is stood in for."""
    settings = json.loads((folder / "preprocessor_config.json").read_text("utf-8"))
    own = TORCH_IMAGES.get(settings["image_processor_type"].removesuffix("Fast"))
    return auto.from_pretrained(folder, backend="pil") if own is None else own(settings)


def make_smolvlm(folder: Path, known: Any, words: Any) -> Any:
    """SmolVLM's own processor; what it asks for videos alone is stood in for."""
    from unittest.mock import patch

    from transformers import AutoImageProcessor

    settings = json.loads((folder / "processor_config.json").read_text("utf-8"))
    with patch("transformers.models.smolvlm.processing_smolvlm.num2words", str):
        return known(
            image_processor=AutoImageProcessor.from_pretrained(folder, backend="pil"),
            tokenizer=words,
            video_processor=SimpleNamespace(num_frames=1, fps=1),
            image_seq_len=settings["image_seq_len"],
            chat_template=words.chat_template,
        )
