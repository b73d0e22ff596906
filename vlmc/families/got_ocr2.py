"""GOT-OCR 2: a SAM-like tower, whose features two convolutions gather, before a Qwen2.

Mirrors ``transformers.models.got_ocr2`` (``GotOcr2ForConditionalGeneration``) for whole pages:
``GotOcr2Processor`` cuts a page into tiles only where it is told to at every call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmc.bundle.manifest import PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole, word
from vlmc.families.image_processors import fixed_spec
from vlmc.families.llava import decoder, image_token_id
from vlmc.families.spec import Checkpoint, Family, ModelFacts, TextFacts, WeightCounts
from vlmc.families.text import text_facts, text_weights
from vlmc.runtime.images import image_tokens, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_TOWER_AT = f"{_AT}: vision_config"
# The decoder where there is no text_config at all.
_QWEN2: Json = {
    "vocab_size": 151860,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 32768,
}
# The conversation ``GotOcr2Processor`` writes around a page, its query being the text.
TEMPLATE = (
    "<|im_start|>system\nYou should follow the instructions carefully and explain your answers in "
    "detail.<|im_end|>{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<img><imgpad></img>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a GOT-OCR 2 checkpoint.

    Raises:
        VlmcError: As ``page_facts`` does.
    """
    return page_facts(checkpoint, "got_ocr2_vision")


def page_facts(checkpoint: Checkpoint, kind: str) -> ModelFacts:
    """What a plan needs of a checkpoint with GOT-OCR 2's model.

    Args:
        checkpoint: Its JSON files.
        kind: The tower's.

    Raises:
        VlmcError: Its tower is of another kind, or its processor makes pictures of another size.
    """
    config = checkpoint.config
    tower = section(config, "vision_config", at=_AT)
    word(tower, "model_type", kind, (kind,), at=_TOWER_AT)
    side = whole(tower, "image_size", 1024, at=_TOWER_AT)
    patch = whole(tower, "patch_size", 16, at=_TOWER_AT)
    if patch > side:
        raise VlmcError(f"a patch of {patch} pixels in an image of {side}", at=_TOWER_AT)
    # Two convolutions of stride 2 keep every second place, the first one too.
    kept = -(-(side // patch) // 4)
    images = fixed_spec(checkpoint.image_processor, kept**2, image_size=side)
    found = section(config, "text_config", at=_AT) or _QWEN2
    text = text_facts(found, str(found.get("model_type") or "qwen2"))
    return ModelFacts(
        text=text,
        image_token_id=image_token_id(config, 151859),
        images=images,
        positions=PositionSpec(scheme="sequential"),
        vision_inputs=vision_inputs(images),
        image_tokens=lambda height, width: image_tokens(height, width, images),
        min_image_tokens=kept**2,
        weights=_count(config, found, tower, text, side // patch),
    )


def _count(config: Json, decoder: Json, tower: Json, text: TextFacts, grid: int) -> WeightCounts:
    layers = whole(tower, "num_hidden_layers", 12, at=_TOWER_AT, most=MAX_LAYERS)
    width = whole(tower, "hidden_size", 768, at=_TOWER_AT)
    inner = whole(tower, "mlp_dim", 3072, at=_TOWER_AT)
    patch = whole(tower, "patch_size", 16, at=_TOWER_AT)
    out = whole(tower, "output_channels", 256, at=_TOWER_AT)
    encoder = width * (layers * (4 * width + 2 * inner) + 3 * patch * patch + grid * grid)
    neck = out * (width + 9 * out)
    projector = 9 * (out * 2 * out + 2 * out * text.hidden) + text.hidden**2
    tied = config.get("tie_word_embeddings", True) is True
    language, embedding, head = text_weights(decoder, text, tied=tied)
    return WeightCounts(encoder + neck + projector, language, embedding, head)


def vision(model: nn.Module) -> nn.Module:
    """Tower and projector: pixels float ``[1, 3, S, S]`` -> features ``[tokens, hidden]``.

    Mirrors ``GotOcr2Model.get_image_features`` for one page.
    """
    from vlmc.families.towers import FixedImageFeatures

    return FixedImageFeatures(model)


FAMILY = Family(
    name="got-ocr2",
    title="GOT-OCR 2",
    model_types=("got_ocr2",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={},
    plain_image="<img>{image}</img>\n",
    template=TEMPLATE,
)
