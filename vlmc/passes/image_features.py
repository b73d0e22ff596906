"""What transformers' models answer of pictures, each in its way: one row for each image token."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What ``get_image_features`` may take of a processor's output.
IMAGE_INPUTS = (
    "pixel_values",
    "high_res_pixel_values",
    "pixel_attention_mask",
    "pixel_mask",
    "image_grid_thw",
    "image_merge_sizes",
    "image_sizes",
    "batch_num_images",
    "spatial_shapes",
    "image_pixel_values",
    "image_attention_mask",
    "qformer_input_ids",
    "qformer_attention_mask",
    "image_position_ids",
    "image_token_pooling",
    "image_grids",
    "target_sizes",
)


def image_features(
    model: Any, inputs: Any, deepstack: Collection[int]
) -> tuple[NDArray[np.float32], Any]:
    """The rows of all pictures of a question, as ``get_image_features`` makes them.

    Args:
        model: Of transformers.
        inputs: What its processor gave.
        deepstack: Layers of the decoder that add features of their own; none: it has no such.

    Returns:
        float32 ``[tokens, hidden]``, those of deep-stack layers behind each row's; and rows that
        come behind every picture's, or None.
    """
    given = {key: inputs[key] for key in IMAGE_INPUTS if key in inputs}
    for own in ("image_patches", "pixel_values_images"):
        if own in inputs:
            given["pixel_values"] = inputs[own]
    made = image_features_of(model)(**given, return_dict=True)
    if made.pooler_output is None and not deepstack:
        # Llama 4 leaves it to its caller; Fuyu has one picture, and no more to do.
        projector = getattr(model, "multi_modal_projector", lambda rows: rows[None])
        made.pooler_output = projector(made.last_hidden_state)
    # One tensor for each picture, for each of its tiles, or for all; deep-stack ones beside.
    found = _parts(made, deepstack)
    columns = [np.concatenate([part.float().numpy() for part in parts]) for parts in found]
    marks = getattr(made, "visual_indicator_features", None)
    return np.concatenate(columns, axis=-1), marks


def image_features_of(model: Any) -> Any:
    """``get_image_features`` of a model, or of the one inside; None where neither has it.

    KOSMOS-2's is a method of the bare model's class, which has the same parts by the same names.
    """
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    for holder in (model, getattr(model, "model", None)):
        found = getattr(holder, "get_image_features", None)
        if found is not None:
            return _of_the_layer(found, model.config)
    bare = getattr(MODEL_MAPPING[type(model.config)], "get_image_features", None)
    return bare and partial(bare, model)


def _of_the_layer(found: Any, config: Any) -> Any:
    """``get_image_features`` that reads the configuration's layer, which Aria's model tells it."""
    layer = inspect.signature(found).parameters.get("vision_feature_layer")
    fixed = layer is not None and isinstance(layer.default, int)
    return partial(found, vision_feature_layer=config.vision_feature_layer) if fixed else found


def _parts(made: Any, deepstack: Collection[int]) -> list[Any]:
    """Image features, and those that layers of the decoder add, picture by picture each."""
    import torch

    deep = getattr(made, "deepstack_features", None) or ()
    if made.pooler_output is not None:
        # The decoder may have fewer layers than the tower has features for.
        return [made.pooler_output, *deep[: len(deepstack)]]
    # Granite 4 Vision: layers with their parts, the last of several counts; nothing comes first.
    added = {layer: parts for layer, parts in deep if layer in deepstack}
    some = next(iter(added.values()))
    return [[torch.zeros_like(part) for part in some], *added.values()]
