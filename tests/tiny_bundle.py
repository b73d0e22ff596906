"""A bundle made by hand in milliseconds: two decoder layers, a one-product vision tower."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.tiny_processor import END, IMAGE_TOKENS, SIDE, VOCAB, write_processor
from vlmc.bundle.manifest import (
    GenerationSpec,
    Limits,
    PositionSpec,
    ProgramSpec,
    Source,
    TensorSpec,
)
from vlmc.bundle.publish import write_bundle

HIDDEN, HEADS, KV, DIM, LAYERS = 32, 4, 2, 8, 2
POSITIONS = 1024
_ONNX = {"float32": 1, "float16": 10, "int64": 7, "int32": 6, "bool": 9}


def tiny_bundle(
    out: Path,
    *,
    name: str = "tiny",
    split: str = "dual",
    mrope: bool = False,
    batch: int = 3,
    ctx: int = 96,
    prefill: int = 8,
    cache: str = "float32",
    seed: int = 0,
    goldens=None,
) -> Path:
    """Writes ``out/NAME/VERSION`` and returns that folder.

    ``goldens(folder)`` may lay further files in the folder before it is sealed.
    """

    def fill(folder: Path) -> dict[str, object]:
        for part in ("programs", "weights", "processor"):
            (folder / part).mkdir()
        weights = Weights(folder, seed)
        language_inputs, states, outputs = _language_specs(mrope, ctx, cache)
        pixels = TensorSpec(name="pixel_values", dtype="float32", shape=(1, 3, SIDE, "width"))
        features = TensorSpec(name="image_features", dtype="float32", shape=("tokens", HIDDEN))
        programs = {}
        if split == "dual":
            programs["vision"] = _program(
                folder, weights, "vision", _vision(), (pixels,), (features,)
            )
            programs["language"] = _program(
                folder, weights, "language", _language(mrope), language_inputs + states, outputs
            )
        else:
            run = TensorSpec(name="run_vision", dtype="bool", shape=(1,))
            programs["model"] = _program(
                folder,
                weights,
                "model",
                _choice() + _language(mrope, features="present_features"),
                (*language_inputs, run, pixels, *states),
                (
                    *outputs[:1],
                    features.model_copy(update={"name": "present_features"}),
                    *outputs[1:],
                ),
            )
        weights.close()
        write_processor(folder)
        draft = {
            "name": name,
            "family": "tiny",
            "split": split,
            "programs": programs,
            "limits": Limits(prefill_seq_len=prefill, ctx_len=ctx, batch_size=batch, max_images=3),
            "positions": PositionSpec(scheme="mrope" if mrope else "sequential"),
            "generation": GenerationSpec(eos_token_ids=(END,)),
            "backend": "onnxruntime",
            "target": {},
            "source": Source(model="tiny", revision=None, files={}),
            "recipe": {"name": name, "precision": "fp32"},
            "tools": {"onnx": onnx.__version__},
        }
        if goldens is not None:
            goldens(folder, draft)
        return draft

    return write_bundle(out, name, fill).folder


class Weights:
    """Random tensors by name, the same in every program, in one file of external data."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._seed = seed
        self._stream = (folder / "weights/all.bin").open("wb")
        self._made: dict[str, TensorProto] = {}

    def get(self, name: str) -> TensorProto:
        if name not in self._made:
            random = np.random.default_rng([self._seed, *name.encode()])
            values = random.normal(0, SCALES.get(name, 0.3), SHAPES[name])
            self._made[name] = self._external(name, values.astype(np.float32))
        return self._made[name]

    def _external(self, name: str, values: np.ndarray) -> TensorProto:
        self._stream.write(b"\0" * (-self._stream.tell() % 4096))
        tensor = TensorProto(name=name, data_type=1, dims=values.shape)
        tensor.data_location = TensorProto.EXTERNAL
        place = {
            "location": "weights/all.bin",
            "offset": self._stream.tell(),
            "length": values.nbytes,
        }
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        self._stream.write(values.tobytes())
        return tensor

    def close(self) -> None:
        self._stream.close()


SCALES = {"embed": 1.0, "places": 0.5, "head": 1.0}
SHAPES = {
    "embed": (VOCAB, HIDDEN),
    "places": (POSITIONS, HIDDEN),
    "head": (HIDDEN, VOCAB),
    "see": (3 * SIDE * SIDE // IMAGE_TOKENS, HIDDEN),
}
for _layer in range(LAYERS):
    SHAPES[f"q{_layer}"] = SHAPES[f"o{_layer}"] = (HIDDEN, HIDDEN)
    SHAPES[f"k{_layer}"] = SHAPES[f"v{_layer}"] = (HIDDEN, KV * DIM)
    SHAPES[f"up{_layer}"] = SHAPES[f"down{_layer}"] = (HIDDEN, HIDDEN)


def _language_specs(mrope: bool, ctx: int, cache: str):
    def spec(name, dtype, *shape):
        return TensorSpec(name=name, dtype=dtype, shape=shape)

    inputs = (
        spec("input_ids", "int64", "batch", "step"),
        spec("image_features", "float32", "rows", HIDDEN),
        spec("feature_index", "int64", "batch", "step"),
        spec("position_ids", "int64", *((3,) if mrope else ()), "batch", "step"),
        spec("sequence_lengths", "int32", "batch"),
        spec("total_length", "int32"),
    )
    names = [f"{kind}.{layer}" for layer in range(LAYERS) for kind in ("key", "value")]
    states = tuple(spec(f"past_{name}", cache, "batch", KV, ctx, DIM) for name in names)
    present = tuple(spec(f"present_{name}", cache, "batch", KV, ctx, DIM) for name in names)
    return inputs, states, (spec("logits", "float32", "batch", VOCAB), *present)


def _node(kind, inputs, outputs, **attributes):
    domain = "com.microsoft" if kind == "GroupQueryAttention" else ""
    return helper.make_node(kind, inputs.split(), outputs.split(), domain=domain, **attributes)


def _vision(out="image_features"):
    return [
        _node("Reshape", "pixel_values #patches", "patches"),
        _node("MatMul", "patches see", "seen"),
        _node("Tanh", "seen", out),
    ]


def _choice():
    """Image features from the pixels when ``run_vision``, else the input of that name."""
    value = helper.make_tensor_value_info
    see = helper.make_graph(_vision("then"), "see", [], [value("then", 1, ["t", HIDDEN])])
    keep = helper.make_graph(
        [_node("Identity", "image_features", "else")], "keep", [], [value("else", 1, ["t", HIDDEN])]
    )
    return [
        _node("Squeeze", "run_vision", "run"),
        _node("If", "run", "present_features", then_branch=see, else_branch=keep),
    ]


def _language(mrope: bool, features: str = "image_features"):
    nodes = [
        _node("Gather", "embed input_ids", "words"),
        _node("Max", "feature_index #zero", "rows"),
        _node("Gather", f"{features} rows", "pictures"),
        _node("GreaterOrEqual", "feature_index #zero", "is_picture"),
        _node("Unsqueeze", "is_picture #last", "picture_mask"),
        _node("Where", "picture_mask pictures words", "joined"),
    ]
    if mrope:  # the axes count differently, so a swapped one is noticed
        nodes += [
            _node("Mul", "position_ids #axes", "weighted"),
            _node("ReduceSum", "weighted #first", "place", keepdims=0),
        ]
    place = "place" if mrope else "position_ids"
    nodes += [
        _node("Gather", f"places {place}", "placed"),
        _node("Add", "joined placed", "x0"),
        _node("Sub", "sequence_lengths #one", "ends"),
    ]
    for i in range(LAYERS):
        nodes += [
            *(_node("MatMul", f"x{i} {w}{i}", f"{w}{i}.out") for w in "qkv"),
            _node(
                "GroupQueryAttention",
                f"q{i}.out k{i}.out v{i}.out past_key.{i} past_value.{i} ends total_length",
                f"a{i} present_key.{i} present_value.{i}",
                num_heads=HEADS,
                kv_num_heads=KV,
            ),
            _node("MatMul", f"a{i} o{i}", f"b{i}"),
            _node("Add", f"x{i} b{i}", f"c{i}"),
            _node("MatMul", f"c{i} up{i}", f"d{i}"),
            _node("Tanh", f"d{i}", f"e{i}"),
            _node("MatMul", f"e{i} down{i}", f"f{i}"),
            _node("Add", f"c{i} f{i}", f"x{i + 1}"),
        ]
    return [
        *nodes,
        _node("Gather", f"x{LAYERS} #end", "tail", axis=1),
        _node("MatMul", "tail head", "logits"),
    ]


CONSTANTS = {
    "#zero": np.array(0, np.int64),
    "#one": np.array(1, np.int32),
    "#last": np.array([-1], np.int64),
    "#first": np.array([0], np.int64),
    "#end": np.array(-1, np.int64),
    "#axes": np.array([1, 2, 3], np.int64).reshape(3, 1, 1),
    "#patches": np.array([-1, 3 * SIDE * SIDE // IMAGE_TOKENS], np.int64),
}


def _program(folder, weights, name, nodes, inputs, outputs) -> ProgramSpec:
    used: set[str] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        used.update(node.input)
        pending += [inner for a in node.attribute for inner in a.g.node]
    tensors = [weights.get(key) for key in SHAPES if key in used]
    tensors += [numpy_helper.from_array(CONSTANTS[key], key) for key in CONSTANTS if key in used]

    def info(spec):
        return helper.make_tensor_value_info(spec.name, _ONNX[spec.dtype], list(spec.shape))

    graph = helper.make_graph(
        list(nodes), name, [info(s) for s in inputs], [info(s) for s in outputs], tensors
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    file = f"programs/{name}.onnx"
    (folder / file).write_bytes(model.SerializeToString(deterministic=True))
    return ProgramSpec(file=file, weights=("weights/all.bin",), inputs=inputs, outputs=outputs)
