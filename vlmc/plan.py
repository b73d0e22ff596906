"""What a build will make: every name, shape and limit resolved, before any weight is read."""

import math
from dataclasses import dataclass, replace

from vlmc.backends import BACKENDS
from vlmc.bundle.manifest import ElementType, Limits, TensorSpec, present_name
from vlmc.errors import VlmcError
from vlmc.families import by_config
from vlmc.families.spec import Checkpoint, Family, ModelFacts, WeightCounts
from vlmc.recipe import Recipe
from vlmc.runtime.positions import position_axes
from vlmc.schema import CachePrecision, LanguagePrecision, VisionPrecision, lookup

DEFAULT_CTX_LEN = 4096
DEFAULT_PREFILL_SEQ_LEN = 128

Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Storage:
    """How each part's numbers are stored; a head in the cache is filled up to ``head_multiple``."""

    vision: VisionPrecision
    language: LanguagePrecision
    embedding: LanguagePrecision
    head: LanguagePrecision
    kv_cache: CachePrecision
    head_multiple: int

    def cache_width(self, head_size: int) -> int:
        """Numbers of a head in the cache."""
        return math.ceil(head_size / self.head_multiple) * self.head_multiple


@dataclass(frozen=True)
class ProgramPlan:
    """One program and its typed ends; a dimension is a size or the name of a free one."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Plan:
    """A recipe and a checkpoint, agreed.

    Attributes:
        recipe: As written, with the lengths and image bound it left out filled in.
        family: The row of ``FAMILIES`` that serves the checkpoint.
        facts: What its JSON files say.
        storage: Precision, part by part.
        limits: What requests are held to.
        programs: ``vision`` and ``language``, or ``model`` (single split).
        kv_cache_bytes: Memory of the KV cache, all rows.
        bundle_bytes: About how large the weights become; None where sizes are not known.
    """

    recipe: Recipe
    family: Family
    facts: ModelFacts
    storage: Storage
    limits: Limits
    programs: tuple[ProgramPlan, ...]
    kv_cache_bytes: int
    bundle_bytes: int | None

    def image_tokens(self, height: int, width: int) -> int:
        """Placeholder tokens of a picture of that many pixels.

        Raises:
            VlmcError: The model refuses the size.
        """
        return self.facts.image_tokens(height, width)


def resolve(
    recipe: Recipe, checkpoint: Checkpoint, *, recipe_at: str = "recipe", model_at: str = "model"
) -> Plan:
    """Settles everything that can be settled without torch and without weights.

    Args:
        recipe: What is asked.
        checkpoint: The model's JSON files.
        recipe_at: The recipe's file, for errors about its keys.
        model_at: The model's folder, for errors about its files.

    Raises:
        VlmcError: The model cannot be served, or cannot do what the recipe asks.
    """
    try:
        family = by_config(checkpoint.config, at="config.json")
        facts = family.facts(checkpoint)
    except VlmcError as error:
        raise error.located(model_at) from error
    try:
        lookup(BACKENDS, recipe.compile.backend, kind="backend", at="compile.backend")
        if bounds := recipe.images.model_dump(exclude={"max_per_prompt"}, exclude_none=True):
            facts = family.facts(replace(checkpoint, image_bounds=bounds))
            _check_bounds(bounds, family, facts)
        limits = _limits(recipe, facts)
    except VlmcError as error:
        raise error.located(recipe_at) from error
    storage = _storage(recipe)
    settled = _settled(recipe, limits, storage)
    states = {(state.kind, state.layer): state.shape for state in facts.states}
    caches = [facts.heads_of(entry[1]) for entry in facts.memory() if entry not in states]
    per_position = sum(heads * storage.cache_width(size) for heads, size in caches)
    element = 2 if storage.kv_cache == "fp16" else 4
    per_row = limits.ctx_len * per_position * element + 4 * sum(map(math.prod, states.values()))
    return Plan(
        recipe=settled,
        family=family,
        facts=facts,
        storage=storage,
        limits=limits,
        programs=_programs(settled, facts, limits, storage),
        kv_cache_bytes=limits.batch_size * per_row,
        bundle_bytes=_estimate(facts.weights, storage, recipe.quantize.block),
    )


def _settled(recipe: Recipe, limits: Limits, storage: Storage) -> Recipe:
    """The recipe with what it left out filled in."""
    images = recipe.images.model_copy(update={"max_per_prompt": limits.max_images})
    tables = {"embedding": storage.embedding, "head": storage.head}
    return recipe.model_copy(
        update={
            "prefill_seq_len": limits.prefill_seq_len,
            "ctx_len": limits.ctx_len,
            "images": images,
            "quantize": recipe.quantize.model_copy(update=tables),
        }
    )


def _check_bounds(bounds: dict[str, int], family: Family, facts: ModelFacts) -> None:
    """Refuses a bound that the family's image processing does not have."""
    for name, value in bounds.items():
        if facts.images.options.get(name) != value:
            key = name.replace("_", "-")
            has = [n.replace("_", "-") for n in ("min_pixels", "max_pixels", "max_tiles")]
            allowed = [n for n in has if n.replace("-", "_") in facts.images.options]
            raise VlmcError(
                f"pictures of the family '{family.name}' have no {key}",
                at=f"images.{key}",
                allowed=["max-per-prompt", *allowed],
            )


def _limits(recipe: Recipe, facts: ModelFacts) -> Limits:
    most = facts.text.max_positions
    ctx_len = recipe.ctx_len or min(DEFAULT_CTX_LEN, most or DEFAULT_CTX_LEN)
    if most is not None and ctx_len > most:
        raise VlmcError(
            f"ctx-len {ctx_len} is more than the {most} positions the model was made for",
            at="ctx-len",
            hint=f"set ctx-len to {most} or less",
        )
    prefill = recipe.prefill_seq_len or min(DEFAULT_PREFILL_SEQ_LEN, ctx_len)
    if prefill > ctx_len:
        raise VlmcError(
            f"prefill-seq-len {prefill} is more than ctx-len {ctx_len}", at="prefill-seq-len"
        )
    # Beside the images there must be room for one more token: the answer's first.
    room, smallest = ctx_len - 1, facts.min_image_tokens
    if smallest > room:
        raise VlmcError(
            f"no image fits: the smallest takes {smallest} tokens, and ctx-len is {ctx_len}",
            at="ctx-len",
            hint=f"set ctx-len to at least {smallest + 1}, plus the prompt and the answer",
        )
    images, own = recipe.images.max_per_prompt, facts.max_images
    if images is not None and own is not None and images > own:
        raise VlmcError(
            f"{images} images in a prompt; this model takes {own}", at="images.max-per-prompt"
        )
    if images is not None and images * smallest > room:
        raise VlmcError(
            f"{images} images take at least {images * smallest} tokens, and ctx-len is {ctx_len}",
            at="images.max-per-prompt",
            hint=f"set it to {room // smallest} or less, or raise ctx-len",
        )
    return Limits(
        prefill_seq_len=prefill,
        ctx_len=ctx_len,
        batch_size=recipe.batch_size,
        max_images=images or min(room // smallest, own or room),
    )


def _storage(recipe: Recipe) -> Storage:
    precision, quantize = recipe.precision, recipe.quantize
    # Tables lose more by four bits than layers do, and answers hang on the head.
    derived: LanguagePrecision = "int8" if precision.language == "int4" else precision.language
    return Storage(
        vision=precision.vision,
        language=precision.language,
        embedding=quantize.embedding or derived,
        head=quantize.head or derived,
        kv_cache=precision.kv_cache,
        head_multiple=BACKENDS[recipe.compile.backend].head_multiple,
    )


def _programs(
    recipe: Recipe, facts: ModelFacts, limits: Limits, storage: Storage
) -> tuple[ProgramPlan, ...]:
    features = image_features(facts)
    inputs, outputs = language_interface(facts, limits.ctx_len, storage)
    if recipe.split == "dual":
        return (
            ProgramPlan("vision", facts.vision_inputs, features),
            ProgramPlan("language", inputs, outputs),
        )
    # In one program the features read and the features made need two names.
    switch = _spec("run_vision", "bool", (1,))
    made = [
        _spec(present_name(spec.name), "float32", ("features", *spec.shape[1:]))
        for spec in features
    ]
    logits, *present = outputs
    return (
        ProgramPlan("model", (*facts.vision_inputs, switch, *inputs), (logits, *made, *present)),
    )


def image_features(facts: ModelFacts) -> tuple[TensorSpec, ...]:
    """What the vision program gives for one image: its features, and deep-stack ones if any."""
    text = facts.vision_text.input if facts.vision_text else None  # changes rows, not their number
    of_image = [spec for spec in facts.vision_inputs if spec.name != text]
    fixed = all(isinstance(size, int) for spec in of_image for size in spec.shape)
    return _feature_specs(facts, facts.min_image_tokens if fixed else "image_tokens")


def _feature_specs(facts: ModelFacts, rows: int | str) -> tuple[TensorSpec, ...]:
    hidden, deep = facts.text.hidden, len(facts.deepstack)
    features = _spec("image_features", "float32", (rows, hidden))
    if not deep:
        return (features,)
    return features, _spec("deepstack_features", "float32", (rows, deep, hidden))


def language_interface(
    facts: ModelFacts, ctx_len: int | str, storage: Storage
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of the language program, for a cache length that may be a name."""
    text = facts.text
    step: Shape = ("batch", "step")
    axes = position_axes(facts.positions)
    cache: ElementType = "float16" if storage.kv_cache == "fp16" else "float32"
    features, *deep = _feature_specs(facts, "features")
    inputs = [
        _spec("input_ids", "int64", step),
        features,
        _spec("feature_index", "int64", step),
        _spec("position_ids", "int64", (axes, *step) if axes else step),
        _spec("sequence_lengths", "int32", ("batch",)),
        _spec("total_length", "int32", ()),
        *deep,
    ]
    for mask in facts.masks:
        if mask.input is not None:
            sizes = f"{mask.input}_step", f"{mask.input}_total"
            inputs.append(_spec(mask.input, "float32", ("batch", 1, *sizes)))
    outputs = [_spec("logits", "float32", ("batch", text.vocab))]
    states: dict[tuple[str, int], Shape] = {
        (one.kind, one.layer): ("batch", *one.shape) for one in facts.states
    }
    for kind, layer in facts.memory():
        heads, size = facts.heads_of(layer)
        block: Shape = ("batch", heads, ctx_len, storage.cache_width(size))
        shape = states.get((kind, layer), block)
        held: ElementType = "float32" if (kind, layer) in states else cache
        inputs.append(_spec(f"past_{kind}.{layer}", held, shape))
        outputs.append(_spec(f"present_{kind}.{layer}", held, shape))
    return tuple(inputs), tuple(outputs)


def _spec(name: str, dtype: ElementType, shape: Shape) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def _estimate(counts: WeightCounts | None, storage: Storage, block: int) -> int | None:
    if counts is None:
        return None
    # Blocks carry a float scale, at four bits a zero point too; rows of int8 carry next to nothing.
    four, eight = 4 + 36 / block, 8 + 32 / block
    matrix = {"fp32": 32.0, "fp16": 16.0, "int8": 8.0, "int4": four}
    table = matrix | {"int8": eight}
    total = (
        counts.vision * matrix[storage.vision]
        + counts.language * matrix[storage.language]
        + counts.embedding * table[storage.embedding]
        + counts.head * table[storage.head]
    )
    return int(total / 8)
