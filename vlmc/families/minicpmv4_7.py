"""MiniCPM-V 4.7: MiniCPM-V 4.6 whose pictures' slices lie on a canvas of positions.

Mirrors ``transformers.models.minicpmv4_7`` (``MiniCPMV4_7ForConditionalGeneration``), for pictures.
"""

from __future__ import annotations

from dataclasses import replace

from vlmc.bundle.manifest import PositionSpec
from vlmc.errors import VlmcError
from vlmc.families import minicpmv4_6
from vlmc.families.configs import whole
from vlmc.families.llava import decoder
from vlmc.families.spec import Checkpoint, Family, ModelFacts
from vlmc.schema import Json

_MARKS = ("image_start", "image_end", "slice_start", "slice_end", "newline")


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a MiniCPM-V 4.7 checkpoint.

    Raises:
        VlmcError: As for MiniCPM-V 4.6; or the decoder takes no positions on three axes.
    """
    found = minicpmv4_6.facts(checkpoint)
    if found.text.model_type not in minicpmv4_6.NETS:
        raise VlmcError(
            f"a decoder of the kind '{found.text.model_type}' takes no positions on three axes",
            at="config.json: text_config.model_type",
            allowed=minicpmv4_6.NETS,
        )
    config = checkpoint.config
    ids = {
        mark: whole(config, f"{mark}_id", at="config.json", least=0)
        for mark in _MARKS
        if config.get(f"{mark}_id") is not None
    }
    options: Json = {mark: ids.get(mark) for mark in _MARKS}
    return replace(found, positions=PositionSpec(scheme="canvas", options=options))


FAMILY = Family(
    name="minicpm-v4.7",
    title="MiniCPM-V 4.7",
    model_types=("minicpmv4_7",),
    facts=facts,
    vision=minicpmv4_6.vision,
    decoder=decoder,
    example={"patches": 96, "tiles": 3, "slots": 48},
    plain_image="{image}",
)
