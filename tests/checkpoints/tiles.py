"""Small checkpoints that cut pictures into tiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.checkpoints.parts import (
    CHATML,
    IMAGE_SIZE,
    INTERNVL_TEMPLATE,
    PATCH,
    SMOLVLM_TEMPLATE,
    randomize,
    save,
    save_parts,
    text_config,
    tokenizer,
    tower_config,
)


def internvl(
    folder: Path,
    *,
    text: str = "qwen2",
    seed: int = 1,
    tied: bool = False,
    tower: dict[str, Any] | None = None,
    feature_layer: int = -1,
    **values: Any,
) -> Path:
    """An InternVL of up to six tiles, four tokens each; ``values`` are the decoder's."""
    import transformers as hf

    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *named.values()]
    words = tokenizer(specials, bos=None, eos="<|im_end|>", template=INTERNVL_TEMPLATE)
    words._set_model_specific_special_tokens(named)
    vision = {
        "image_size": [IMAGE_SIZE, IMAGE_SIZE],
        "patch_size": [PATCH, PATCH],
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "attention_bias": True,
        **(tower or {}),
    }
    config = hf.InternVLConfig(
        vision_config=vision,
        text_config=text_config(text, len(words), tie_word_embeddings=tied, **values),
        image_token_id=specials.index("<IMG_CONTEXT>"),
        image_seq_length=4,
        vision_feature_layer=feature_layer,
        tie_word_embeddings=tied,
    )
    images = hf.GotOcr2ImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, max_patches=6
    )
    model = randomize(hf.InternVLForConditionalGeneration(config), seed)
    settings = {"image_seq_length": 4}
    return save_parts(model, images, words, folder, InternVLProcessor=settings)


AYA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|START_OF_TURN_TOKEN|>{{ message['role'] }}:"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|END_OF_TURN_TOKEN|>"
    "{% endfor %}{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|>assistant:{% endif %}"
)


COHERE_SPECIALS = ["<PAD>", "<UNK>", "<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>"]
COHERE_SPECIALS += ["<|END_OF_TURN_TOKEN|>", "<|START_OF_IMG|>", "<|END_OF_IMG|>"]
COHERE_SPECIALS += ["<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>"]


def aya_vision(
    folder: Path,
    *,
    text: str = "cohere2",
    seed: int = 1,
    tower: dict[str, Any] | None = None,
    marks: tuple[str, ...] = ("TILE_GLOBAL", *(f"TILE_{number}" for number in range(1, 5))),
    feature_layer: int | list[int] = -1,
    adapter: int | None = None,
    **values: Any,
) -> Path:
    """An Aya Vision of up to six tiles, four tokens each; the names of some are no tokens."""
    import transformers as hf

    specials = [*COHERE_SPECIALS, *marks]
    words = tokenizer(specials, bos="<BOS_TOKEN>", eos="<|END_OF_TURN_TOKEN|>", template=None)
    values.setdefault("vocab_size", len(words))
    if text == "cohere2":
        layers = ["sliding_attention", "full_attention"]
        values = {"sliding_window": 24, "layer_types": layers, **values}
    config = hf.AyaVisionConfig(
        vision_config=tower_config("siglip") | (tower or {}),
        text_config=text_config(text, **{"eos_token_id": 4, **values}),
        image_token_index=specials.index("<|IMG_PATCH|>"),
        vision_feature_layer=feature_layer,
    )
    if adapter is not None:
        config.alignment_intermediate_size = adapter
    processor = hf.AyaVisionProcessor(
        image_processor=hf.GotOcr2ImageProcessorPil(
            size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, max_patches=6
        ),
        tokenizer=words,
        patch_size=PATCH,
        downsample_factor=2,
        img_size=IMAGE_SIZE,
        chat_template=AYA_TEMPLATE,
    )
    model = randomize(hf.AyaVisionForConditionalGeneration(config), seed)
    return save(model, processor, folder)


def cohere2_vision(folder: Path, *, seed: int = 1, most: int = 6, **values: Any) -> Path:
    """A Command A Vision of four tokens a tile; its image processor would need torchvision."""
    import transformers as hf

    named = {
        "boi_token": "<|START_OF_IMG|>",
        "eoi_token": "<|END_OF_IMG|>",
        "image_token": "<|IMG_PATCH|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
    }
    specials = COHERE_SPECIALS
    template = AYA_TEMPLATE.replace("<image>", "<|IMG_PATCH|>")
    words = tokenizer(specials, bos="<BOS_TOKEN>", eos="<|END_OF_TURN_TOKEN|>", template=template)
    words._set_model_specific_special_tokens(named)
    layers = ["sliding_attention", "sliding_attention", "full_attention"]
    text = {"sliding_window": 24, "layer_types": layers, "num_hidden_layers": 3, **values}
    config = hf.Cohere2VisionConfig(
        vision_config=tower_config("siglip"),
        text_config=text_config("cohere2", len(words), **{"eos_token_id": 4, **text}),
        image_token_id=specials.index("<|IMG_PATCH|>"),
        alignment_intermediate_size=72,
    )
    model = randomize(hf.Cohere2VisionForConditionalGeneration(config), seed)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    images = {
        "image_processor_type": "Cohere2VisionImageProcessorFast",
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "patch_size": 2,
        "max_patches": most,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(images), encoding="utf-8")
    settings = {"processor_class": "Cohere2VisionProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


GOT_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<imgpad>"]


def got_ocr2(
    folder: Path,
    *,
    seed: int = 1,
    template: str | None = CHATML.replace(
        "<|vision_start|><|image_pad|><|vision_end|>", "<img><imgpad></img>\n"
    ),
    tower: dict[str, Any] | None = None,
    **values: Any,
) -> Path:
    """A GOT-OCR 2 of nine tokens a page, its windows not dividing the tower's patches."""
    import transformers as hf

    words = tokenizer(GOT_SPECIALS, bos=None, eos="<|im_end|>", template=None)
    config = hf.GotOcr2Config(
        vision_config={
            "image_size": 54,
            "patch_size": 6,
            "hidden_size": 48,
            "output_channels": 16,
            "mlp_dim": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "window_size": 4,
            "global_attn_indexes": [1],
            **(tower or {}),
        },
        text_config=text_config("qwen2", len(words), **values),
        image_token_index=GOT_SPECIALS.index("<imgpad>"),
        # The processor's own count is a constant, which tests set to this.
        image_seq_length=9,
        tie_word_embeddings=values.get("tie_word_embeddings", False),
    )
    processor = hf.GotOcr2Processor(
        image_processor=hf.GotOcr2ImageProcessorPil(size={"height": 54, "width": 54}),
        tokenizer=words,
        chat_template=template,
    )
    model = randomize(hf.GotOcr2ForConditionalGeneration(config), seed)
    return save(model, processor, folder)


def idefics3(
    folder: Path,
    *,
    kind: str = "idefics3",
    split: bool = True,
    longest: int = 2 * IMAGE_SIZE,
    seed: int = 1,
    **values: Any,
) -> Path:
    """An Idefics3 or SmolVLM of four tokens a tile; one tile's mark is no token of its own."""
    import transformers as hf

    specials = [
        "<|endoftext|>",
        "<|im_start|>",
        "<end_of_utterance>",
        "<image>",
        "<fake_token_around_image>",
        "<global-img>",
        *(f"<row_{row}_col_{column}>" for row, column in ((1, 1), (1, 2), (2, 1))),
    ]
    words = tokenizer(specials, bos="<|im_start|>", eos="<end_of_utterance>", template=None)
    values.setdefault("vocab_size", len(words))
    smol = kind == "smolvlm"
    config = (hf.SmolVLMConfig if smol else hf.Idefics3Config)(
        vision_config={
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
        },
        text_config=text_config("llama", **values),
        image_token_id=specials.index("<image>"),
        scale_factor=2,
    )
    images = (hf.SmolVLMImageProcessorPil if smol else hf.Idefics3ImageProcessorPil)(
        size={"longest_edge": longest},
        max_image_size={"longest_edge": IMAGE_SIZE},
        do_image_splitting=split,
    )
    if not smol:
        processor = hf.Idefics3Processor(
            image_processor=images,
            tokenizer=words,
            image_seq_len=4,
            chat_template=SMOLVLM_TEMPLATE,
        )
        model = hf.Idefics3ForConditionalGeneration(config)
        return save(randomize(model, seed), processor, folder)
    # Its processor class asks for num2words and a video processor.
    words.chat_template = SMOLVLM_TEMPLATE
    model = hf.SmolVLMForConditionalGeneration(config)
    save_parts(randomize(model, seed), images, words, folder)
    named = {"image_seq_len": 4, "processor_class": "SmolVLMProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(named), encoding="utf-8")
    return folder
