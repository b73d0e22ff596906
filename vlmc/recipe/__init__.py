"""The recipe: what to build, as its file says it."""

from vlmc.recipe.load import load_recipe
from vlmc.recipe.schema import (
    Budgets,
    Checks,
    Compile,
    Images,
    Precision,
    Quantize,
    Recipe,
    recorded,
)

__all__ = [
    "Budgets",
    "Checks",
    "Compile",
    "Images",
    "Precision",
    "Quantize",
    "Recipe",
    "load_recipe",
    "recorded",
]
