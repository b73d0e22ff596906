"""PP-Chart2Table: GOT-OCR 2, whose template writes every one of a picture's tokens.

Mirrors ``transformers.models.pp_chart2table``, whose model is ``GotOcr2ForConditionalGeneration``
and whose processor expands nothing.
"""

from __future__ import annotations

from dataclasses import replace

from vlmc.bundle.manifest import ImageLayout
from vlmc.families.got_ocr2 import page_facts, vision
from vlmc.families.llava import decoder
from vlmc.families.spec import Checkpoint, Family, ModelFacts


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a PP-Chart2Table checkpoint.

    Raises:
        VlmcError: As for GOT-OCR 2.
    """
    found = page_facts(checkpoint, "pp_chart2table_vision")
    written = "{image}" * found.min_image_tokens
    return replace(found, image_layout=ImageLayout(placeholder=written))


FAMILY = Family(
    name="pp-chart2table",
    title="PP-Chart2Table",
    model_types=("pp_chart2table",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={},
    plain_image="<img>{image}</img>\n",
)
