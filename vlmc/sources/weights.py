"""The checks of a checkpoint's weights that need no tensor read."""

from collections.abc import Iterable
from pathlib import Path

from vlmc.errors import VlmcError
from vlmc.passes.checkpoint import TensorRef
from vlmc.passes.checkpoint_index import read_index
from vlmc.passes.stored_experts import stack_experts

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_NOT_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")
_FLOATS = ("F64", "F32", "F16", "BF16")
# Whole numbers are buffers (position tables); eight bits or fewer are weights already quantized.
_BUFFERS = ("I64", "I32", "I16", "U64", "U32", "U16", "BOOL")


def refuse_pickles(names: Iterable[str], *, model: str, at: str) -> None:
    """Raises when a model's only weights are pickles, which can run code as they are read.

    Args:
        names: All its files.
        model: The hub id or folder, for the command that converts it.
        at: Its place, for the error.
    """
    found = sorted(names)
    if any(name.endswith(".safetensors") for name in found):
        return
    pickles = [n for n in found if n.endswith(_PICKLES) and n not in _NOT_WEIGHTS]
    if pickles:
        convert = (
            'python -c "from transformers import AutoModelForImageTextToText as M, '
            f"AutoProcessor as P; M.from_pretrained('{model}').save_pretrained('converted'); "
            f"P.from_pretrained('{model}').save_pretrained('converted')\""
        )
        raise VlmcError(
            f"the weights are pickles ('{pickles[0]}'), which can run code when they are read",
            at=at,
            hint=f"if you trust their author, convert them once, then use the folder: {convert}",
        )


def check_weights(folder: Path) -> dict[str, TensorRef]:
    """The index of the weights, once every header is known to be whole and every dtype usable.

    Experts that are stored one by one are stacked.

    Raises:
        VlmcError: A shard is missing or truncated, the index names a tensor its shard lacks, or
            the weights are quantized already.
    """
    index = read_index(folder)
    for ref in index.values():
        if ref.dtype not in _FLOATS and ref.dtype not in _BUFFERS:
            raise VlmcError(
                f"tensor '{ref.name}' is stored as {ref.dtype}: this checkpoint is quantized",
                at=str(ref.path),
                allowed=_FLOATS,
                hint="start from the original checkpoint; the recipe's precision quantizes it",
            )
    if not any(ref.dtype in _FLOATS for ref in index.values()):
        raise VlmcError("there are no weights in the safetensors files", at=str(folder))
    return stack_experts(index)
