"""Which tokens are pictures', asked of a processor of transformers that says so only when asked."""

import inspect
from typing import Any


def ask_token_types(processor: Any, model: Any) -> None:
    """Has ``processor`` give ``mm_token_type_ids`` where the model makes its positions of them.

    Most processors of such models give them by themselves; ``Cosmos3EdgeProcessor`` does not, and
    ``generate`` then refuses pictures.

    Args:
        processor: Changed in place.
        model: The one that is given what ``processor`` makes.
    """
    places = getattr(getattr(model, "model", None), "get_rope_index", None)
    if places is not None and "mm_token_type_ids" in inspect.signature(places).parameters:
        processor.return_mm_token_type_ids = True
