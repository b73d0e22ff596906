"""What a reader should know of how a bundle runs here."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlmc.runtime import Model


def tell_portable(model: "Model") -> None:
    """One line on standard error where the faster programs of a bundle cannot serve."""
    if model.engine.portable:
        print(f"note: running the portable programs: {model.engine.portable}", file=sys.stderr)
