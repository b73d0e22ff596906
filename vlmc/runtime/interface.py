"""What this runtime feeds a language program and reads from it: a program must take just that."""

from collections.abc import Collection

from vlmc.bundle.manifest import ProgramSpec, present_name
from vlmc.errors import VlmcError
from vlmc.runtime.cache import MEMORY

_FED = {
    "input_ids",
    "image_features",
    "feature_index",
    "position_ids",
    "sequence_lengths",
    "total_length",
    "run_vision",
}
FEATURES = ("image_features", "deepstack_features")  # gathered by the same index


def vision_inputs(
    program: ProgramSpec, masks: Collection[str], *, single: bool, at: str
) -> tuple[str, ...]:
    """The names of vision inputs, once every input is known to be one that can be fed.

    Args:
        program: The one that holds the decoder.
        masks: Names of inputs that carry attention biases.
        single: Whether it holds the vision tower too.
        at: The bundle's folder, for errors.

    Raises:
        VlmcError: An input is missing, unknown, or features of a form that cannot be gathered.
    """
    inputs = {spec.name: spec for spec in program.inputs}
    needed = (_FED | set(masks)) - ({"run_vision"} if not single else set())
    states = {name for name in inputs if name.startswith(MEMORY)}
    others = inputs.keys() - _FED - states - set(FEATURES) - set(masks)
    odd = (needed - inputs.keys()) | (set() if single else others)
    for name in inputs.keys() & set(FEATURES):
        rows, *sizes = inputs[name].shape
        if not isinstance(rows, str) or not sizes or any(isinstance(n, str) for n in sizes):
            odd.add(name)
    if odd:
        raise VlmcError(
            f"the program's inputs are not those this vlmc feeds: {', '.join(sorted(odd))}",
            at=at,
            hint="update vlmc, or rebuild the bundle",
        )
    return tuple(spec.name for spec in program.inputs if spec.name in others)


def check_outputs(program: ProgramSpec, *, single: bool, at: str) -> None:
    """Every output must be known; the single split gives the features it used too.

    Raises:
        VlmcError: One is missing, unknown, or logits of no fixed width.
    """
    states = tuple(name.replace("past", "present") for name in MEMORY)
    outputs = {spec.name: spec for spec in program.outputs if not spec.name.startswith(states)}
    features = [spec for spec in program.inputs if spec.name in FEATURES]
    used = {present_name(spec.name) for spec in features} if single else set()
    odd = outputs.keys() ^ ({"logits"} | used)
    if not odd and not all(isinstance(size, int) for size in outputs["logits"].shape[1:]):
        odd = {"logits"}
    if odd:
        raise VlmcError(
            f"the program's outputs are not those this vlmc reads: {', '.join(sorted(odd))}",
            at=at,
            hint="update vlmc, or rebuild the bundle",
        )
