"""transformers, loaded the ordinary way, as the judge of built bundles."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.build.budget_images import Gemma4UnifiedImages
from tests.build.padded_images import KimiImages
from tests.build.phi_images import Phi4Images, projected
from tests.build.torch_images import (
    Cohere2VisionImages,
    Llama4Images,
    Molmo2Images,
    PerceptionLMImages,
)
from vlmc.families import by_config
from vlmc.passes.image_features import IMAGE_INPUTS, image_features_of
from vlmc.passes.stand_in import cut_tensors
from vlmc.passes.timm_towers import own_towers

TOKENS = 24
TORCH_IMAGES = {
    "Cohere2VisionImageProcessor": Cohere2VisionImages,
    "Gemma4UnifiedImageProcessor": Gemma4UnifiedImages,
    "Kimi_K25ImageProcessor": KimiImages,
    "Llama4ImageProcessor": Llama4Images,
    "Phi4MultimodalImageProcessor": Phi4Images,
    "Molmo2ImageProcessor": Molmo2Images,
    "PerceptionLMImageProcessor": PerceptionLMImages,
}
# They take one list of pictures, and none for a text alone.
FLAT = ("GotOcr2Processor", "PPChart2TableProcessor")
ONE_PICTURE = ("Blip2Processor", "InstructBlipProcessor", "Kosmos2Processor")


@dataclass(frozen=True)
class Expected:
    """``token_ids`` are greedy, an end token left out; ``logits`` [24, V] go past it."""

    prompt_token_ids: list[int]
    features: list[np.ndarray]
    token_ids: list[int]
    forced: list[int]
    logits: np.ndarray


class Oracle:
    """A folder's model in float32, and its processor."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForMultimodalLM

        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        # Phi-4's tower answers otherwise with eager attention than by default.
        attention: dict[str, Any] = (
            {} if "phi4" in config.model_type else {"attn_implementation": "eager"}
        )
        family = by_config(config.to_dict())
        make = family.timm_tower
        if family.part is not None:  # Qwen2.5-Omni's thinker
            config = attention["config"] = getattr(config, family.part, config)
        if getattr(config, "vision_config", None) and "timm" in config.vision_config.model_type:
            from vlmc.families.timm_modules import stored_tower

            make = stored_tower  # tests/families/test_timm.py compares it with timm's own
        with own_towers(make):
            model: Any = AutoModelForMultimodalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, **attention
            )
        self.model = model.eval()
        self.processor = make_processor(folder)
        kinds = {kind.__name__ for kind in type(self.processor).__mro__}
        if "Cosmos3EdgeProcessor" in kinds:
            self.processor.return_mm_token_type_ids = True  # or generate() takes no picture
        token = getattr(self.processor, "image_token", "")
        # What a template writes, where that is not the token itself.
        token = getattr(self.processor, "image_placeholder_token", token)
        # BLIP-2's has no place in a text.
        self.image_text = token if isinstance(token, str) else ""
        if type(self.processor).__name__ == "FuyuProcessor":
            cut_tensors(self.processor.image_processor)
            self.image_text = ""  # it writes the picture itself, ahead of the text

    def answer(self, messages: list[dict[str, Any]], pictures: list[Any]) -> Expected:
        """``pictures`` are PIL images, in the order of the messages' image parts.

        Raises:
            ValueError: The processor takes no such question.
        """
        import torch

        if self.processor.chat_template is None:
            if len(messages) > 1:
                raise ValueError("turns are a template's")
            if type(self.processor).__name__ in ONE_PICTURE and len(pictures) != 1:
                raise ValueError("of several pictures the first alone is seen, and one it must be")
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
        return self.continue_(self.inputs(filled, pictures), pictures, torch)

    def inputs(self, messages: list[dict[str, Any]], pictures: list[Any]) -> Any:
        """What the processor makes."""
        render = self.processor.apply_chat_template
        if type(self.processor).__name__ not in FLAT:
            asked = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
            return render(messages, tokenize=True, **asked)
        text = render(messages, add_generation_prompt=True)
        if not pictures:
            return self.processor.tokenizer(text, return_tensors="pt")
        return self.processor(text=[text], images=pictures, return_tensors="pt")

    def placeholder(self) -> str:
        """A picture in a prompt; HunYuan-VL's processor takes none without its marks."""
        if type(self.processor).__name__ == "PPChart2TableProcessor":  # which expands nothing
            return "<imgpad>" * int(self.model.config.image_seq_length)
        token = str(self.image_text or self.processor.image_token)
        if type(self.processor).__name__ != "HunYuanVLProcessor":
            return token
        return f"{self.processor.image_start_token}{token}{self.processor.image_end_token}"

    def rows(self, found: Any, pictures: list[Any]) -> list[np.ndarray]:
        """The features of each picture, which transformers may give in one, or tile by tile."""
        if len(pictures) == 1:
            return [np.concatenate([part.numpy() for part in found])]
        counts, shown = [], len(pictures)
        config = self.model.config
        token = getattr(config, "image_token_id", getattr(self.processor, "image_token_id", None))
        for one in pictures:
            # As often as there are pictures: among others, a picture may have fewer features.
            text = [self.placeholder() * shown]
            flat = type(self.processor).__name__ in FLAT
            given = [one] * shown if flat else [[one] * shown]
            alone = self.processor(text=text, images=given, return_tensors="pt")
            counts.append(alone["input_ids"][0].tolist().count(token) // shown)
        together = np.concatenate([part.numpy() for part in found])
        assert sum(counts) == len(together)
        return np.split(together, np.cumsum(counts)[:-1])

    def continue_(self, inputs: Any, pictures: list[Any], torch: Any) -> Expected:
        length = inputs["input_ids"].shape[1]
        asked = {"do_sample": False, "max_new_tokens": TOKENS, "num_beams": 1}
        with torch.no_grad():
            features = []
            if pictures:
                given = {key: inputs[key] for key in IMAGE_INPUTS if key in inputs}
                for own in ("image_patches", "pixel_values_images"):
                    if own in inputs:
                        given["pixel_values"] = inputs[own]
                get = features_of(self.model)
                made = get(**given, return_dict=True) if get else projected(self.model, inputs)
                deep = getattr(made, "deepstack_features", None)
                if made.pooler_output is None and not deep:
                    # Llama 4 leaves that to its caller; Fuyu has no more to do.
                    own = getattr(self.model, "multi_modal_projector", lambda rows: rows[None])
                    made.pooler_output = own(made.last_hidden_state)
                layers = self.model.config.get_text_config().num_hidden_layers
                found = feature_rows(made, layers)
                features = self.rows(found, pictures)
                marks = getattr(made, "visual_indicator_features", None)
                if marks is not None:  # Ovis 2: behind every picture's own
                    features = [np.concatenate([own, marks]) for own in features]
            tokens = self.model.generate(**inputs, **asked)[0, length:].tolist()
            ends = generating(self.model).generation_config.eos_token_id
            ends = ends if isinstance(ends, list) else [ends]
            made = self.model.generate(
                **inputs,
                **asked,
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


def generating(model: Any) -> Any:
    """The model whose ``generate`` runs: BLIP-2's and KOSMOS-2's is that of their decoder."""
    parts = [getattr(model, name, None) for name in ("language_model", "text_model")]
    return next((part for part in parts if hasattr(part, "generate")), model)


def features_of(model: Any) -> Any:
    """``get_image_features``, wherever it is; None where no class has it."""
    return image_features_of(model)


def feature_rows(made: Any, layers: int) -> Any:
    """What ``get_image_features`` gives for each picture, deep-stack features beside the rest."""
    import torch

    deep = getattr(made, "deepstack_features", None)
    if not deep:
        return made.pooler_output
    first, deep = made.pooler_output, list(deep)
    if first is not None:
        deep = deep[:layers]  # there is no layer for others
    else:
        # Granite 4 Vision: layers with their parts; an image token itself is nothing.
        deep = [parts for layer, parts in dict(deep).items() if layer < layers]
        first = [torch.zeros_like(part) for part in deep[0]]
    return [torch.cat(parts, dim=-1) for parts in zip(first, *deep, strict=True)]


def make_processor(folder: Path) -> Any:
    """The folder's processor with the PIL image classes; Qwen2-VL's without its video part."""
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    from vlmc.passes.processor_class import processor_class

    try:
        made = AutoProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
        made.chat_template = made.chat_template or made.tokenizer.chat_template
        if type(made).__name__ == "GotOcr2Processor":
            config = json.loads((folder / "config.json").read_text("utf-8"))
            made.num_image_tokens = config["image_seq_length"]
        if type(made).__name__ == "Kosmos2Processor":
            config = json.loads((folder / "config.json").read_text("utf-8"))
            made.num_image_tokens = config["latent_query_num"]
        return made
    except (ImportError, ValueError) as error:
        missing = ("video processor", "any image processor class")
        if isinstance(error, ValueError) and not any(words in str(error) for words in missing):
            raise
        known = processor_class(folder)

    class WithoutVideo(known):  # type: ignore[misc, valid-type]
        def check_argument_for_proper_class(self, name: str, argument: Any) -> type:
            return type(argument)

    words = AutoTokenizer.from_pretrained(folder)
    if known.__name__ == "SmolVLMProcessor":
        return make_smolvlm(folder, WithoutVideo, words)
    template = folder / "chat_template.jinja"
    saved = folder / "processor_config.json"
    settings = json.loads(saved.read_text("utf-8")) if saved.is_file() else {}
    if known.__name__ == "Lfm2VlProcessor":
        from vlmc.passes.stand_in import NaflexImages
        from vlmc.sources import read_checkpoint

        # Its image processor needs torchvision; the pictures are compared elsewhere.
        read = read_checkpoint(folder, tokenizer=False)
        images: Any = NaflexImages(by_config(read.config).facts(read).images)
    else:
        images = make_images(folder, AutoImageProcessor)
    named = inspect.signature(known).parameters
    others: dict[str, Any] = dict.fromkeys(
        {"video_processor", "feature_extractor", "audio_processor"} & named.keys()
    )
    if known.__name__.startswith("MiniCPM"):
        others["video_processor"] = images  # it has the settings that are read of that one
    return WithoutVideo(
        image_processor=images,
        tokenizer=words,
        **others,
        chat_template=template.read_text("utf-8") if template.is_file() else words.chat_template,
        **{key: settings[key] for key in named if key in settings and key != "chat_template"},
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
