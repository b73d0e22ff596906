"""LLaVA-NeXT-Video on pictures: LLaVA-NeXT trained on videos too, frames given as pictures.

Mirrors ``transformers.models.llava_next_video`` (``LlavaNextVideoForConditionalGeneration``), but
for its pooling of videos.
"""

from vlmc.families import llava_next
from vlmc.families.llava import decoder
from vlmc.families.spec import Checkpoint, Family, ModelFacts


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a LLaVA-NeXT-Video checkpoint.

    Raises:
        VlmcError: As ``llava_next.anyres_facts``.
    """
    config, images = checkpoint.config, checkpoint.image_processor
    return llava_next.anyres_facts(config, images, image_token=32001)


FAMILY = Family(
    name="llava-next-video",
    title="LLaVA-NeXT-Video",
    model_types=("llava_next_video",),
    facts=facts,
    vision=llava_next.vision,
    decoder=decoder,
    example=llava_next.FAMILY.example,
    plain_image="<image>\n",
)
