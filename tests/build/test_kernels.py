"""Programs for our own kernels beside the portable ones: their nodes, and their answers."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.backends.kernels import KERNELS, steps
from tests.build.questions import QUESTIONS
from tests.build.test_parity import error
from tests.build.test_passes import contents
from vlmc.backends.onnxruntime import in_place, native
from vlmc.backends.onnxruntime.lower_chains import CHAIN
from vlmc.backends.onnxruntime.native import DOMAIN
from vlmc.bundle.store import read_bundle
from vlmc.errors import VlmcError
from vlmc.passes import questions as golden
from vlmc.runtime import replay
from vlmc.runtime.engine import Engine
from vlmc.runtime.model import Model

pytestmark = pytest.mark.build
NAME = "llava-clip-llama"
# Attention and products of quantized weights, as onnxruntime has them.
THEIRS = {
    "GroupQueryAttention",
    "MultiHeadAttention",
    "Attention",
    "MatMulNBits",
    "MatMulInteger",
    "DynamicQuantizeMatMul",
}
# Of the logits' range. In float32 sums are rounded in another order; with an fp16 cache a key may
# be rounded to the one beside it, 1e-3 of it. Eight bits: both round activations, onnxruntime's
# too, but not alike: up to half a step of 1/127 of each. Four bits: where a prompt has more than
# eight tokens, weights are rounded once more, to 1/127 of the largest of their row.
PRECISIONS = {
    "precision=fp32": 1e-5,
    "split=single": 1e-5,
    "kv-cache=fp16": 2e-3,
    "vision=fp16": 1e-5,
    "language=fp16": 1e-5,
    "vision=int8": 5e-2,
    "language=int8": 5e-2,
    "language=int4": 1e-1,
}
# A tower with windows, a product of pixels, heads that are filled up in the cache, soft caps.
CASES = [
    *((NAME, precision) for precision in PRECISIONS),
    ("qwen2.5-vl", "precision=fp32"),
    ("internvl", "precision=fp32"),
    ("narrow-heads", "kv-cache=fp16"),
    ("gemma2", "precision=fp32"),
    ("gemma2", "language=int8"),
    ("internvl", "vision=int8"),
    ("llava-siglip-mistral", "vision=int8"),
]


def override(precision: str) -> str:
    return precision if precision.startswith(("split", "precision")) else f"precision.{precision}"


def nodes(graph: Any) -> list[Any]:
    """Of a graph, and of those within it; of a chain, its steps."""
    inner = (a.g for node in graph.node for a in node.attribute if a.HasField("g"))
    found = [*graph.node, *(node for one in inner for node in nodes(one))]
    return [one for node in found for one in (steps(node) if node.op_type == CHAIN else [node])]


def loaded(folder: Path, file: str) -> Any:
    return onnx.load(folder / file, load_external_data=False).graph


def stored(graph: Any) -> dict[str, dict[str, str]]:
    """Initializers that lie in a file of weights, and where."""
    return {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    }


CACHED = ("CachedAttention", "RotaryAttention")


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_no_attention_and_no_quantized_product_is_left_to_others(workshop, name, precision):
    bundle = workshop.build(name, override(precision)).bundle
    for program in read_bundle(bundle).manifest.programs.values():
        assert program.kernels == program.file.replace(".onnx", ".kernels.onnx")
        graphs = loaded(bundle, program.file), loaded(bundle, program.kernels)
        portable, fast = (nodes(graph) for graph in graphs)
        assert not any(node.domain == DOMAIN for node in portable)
        assert THEIRS & {node.op_type for node in portable}
        assert THEIRS & {node.op_type for node in fast} == set()
        ours = Counter(node.op_type for node in fast if node.domain == DOMAIN)
        assert {op for op in ours if op.startswith(("Linear", "Gated"))}
        assert {op for op in ours if op.startswith((*CACHED, "TowerAttention"))}
        # Between products of float32 nothing is rounded.
        assert "TowerAttentionBf16" not in ours or precision in ("precision=int8", "vision=int8")
        half = precision == "kv-cache=fp16" and program.file.endswith("language.onnx")
        assert bool({f"{op}Half" for op in CACHED} & ours.keys()) == half
        for of in ("input", "output"):
            assert getattr(graphs[0], of) == getattr(graphs[1], of)
        # One copy of each weight: the same names lie at the same place.
        kept = stored(graphs[1])
        assert kept
        assert kept.items() <= stored(graphs[0]).items()


@pytest.mark.parametrize(("name", "gate"), [(NAME, 1), ("gemma2", 2)])
@pytest.mark.parametrize(
    ("precision", "kind"),
    [
        ("language=int8", "Panels"),
        ("language=int4", "BlockPanels"),
        ("precision=fp32", "Float"),
        ("language=fp16", "Half"),
    ],
)
def test_products_of_one_value_are_one_node(workshop, name, gate, precision, kind):
    """Query, key and value; a gate, its activation and what it lets through; rotated attention."""
    bundle = workshop.build(name, override(precision)).bundle
    program = read_bundle(bundle).manifest.programs["language"]
    found = nodes(loaded(bundle, str(program.kernels)))
    layers = sum(node.op_type == "RotaryAttention" for node in found)
    assert layers
    assert "RotaryEmbedding" not in {node.op_type for node in found}
    assert not {output for node in found if node.op_type == "Reshape" for output in node.output} & {
        node.input[2] for node in found if node.op_type == "RotaryAttention"
    }
    ours = Counter(node.op_type for node in found if node.domain == DOMAIN)
    # Only the first norm is of no sum.
    three, gated = f"Linear{kind}x3", f"Gated{kind}"
    assert (ours[three], ours[f"Normed{three}"]) == (1, layers - 1)
    assert (ours[gated], ours[f"Normed{gated}"]) == (0, layers)
    gates = {a.i for node in found for a in node.attribute if a.name == "gate"}
    assert gates == {gate}
    assert not {"Sigmoid", "Gelu"} & {node.op_type for node in found}
    # Between two lies the choice of the last token; in gemma2, norms too.
    ours = Counter(n.op_type for n in loaded(bundle, str(program.kernels)).node)
    assert ours[CHAIN] == (2 if name == NAME else 2 * layers)
    assert not {op for op in ours if op.startswith(("Normed", "Gated", "Rotary"))}


@pytest.mark.parametrize(
    ("name", "gates"), [(NAME, {3, 4}), ("llava-siglip-mistral", {2, 4}), ("internvl", {4})]
)
@pytest.mark.parametrize(
    ("precision", "kind"), [("vision=int8", "Panels"), ("precision=fp32", "Float")]
)
def test_an_activation_is_computed_with_its_product(workshop, name, gates, precision, kind):
    """Quick GELU, tanh GELU and GELU, in towers and in what follows them."""
    bundle = workshop.build(name, override(precision)).bundle
    program = read_bundle(bundle).manifest.programs["vision"]
    found = [
        n
        for n in nodes(loaded(bundle, str(program.kernels)))
        if n.op_type.removeprefix("Normed") == f"Activated{kind}"
    ]
    assert {a.i for node in found for a in node.attribute if a.name == "gate"} == gates
    # Behind a layer's attention there is a sum; what follows a tower has none before it.
    assert {node.op_type for node in found} == {f"Activated{kind}", f"NormedActivated{kind}"}
    left = {node.op_type for node in nodes(loaded(bundle, str(program.kernels)))}
    assert not left & {"Sigmoid", "Gelu", "Erf"}


def opened(folder: Path, *, portable: bool, **options: Any) -> Model:
    bundle = read_bundle(folder)
    return Model(bundle, Engine(bundle, threads=1, portable=portable, **options), reuse=False)


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_both_kinds_of_programs_answer_alike(workshop, name, precision):
    folder = workshop.build(name, override(precision)).bundle
    fast, portable = opened(folder, portable=False), opened(folder, portable=True)
    assert portable.engine.portable == "asked for"
    assert bool(fast.engine.portable) == (KERNELS is None)
    asked = QUESTIONS["three images"]
    prompt = fast.prompt(asked.messages, images=asked.pictures())
    greedy = portable.generate(
        asked.messages, images=asked.pictures(), max_new_tokens=12, ignore_eos=True
    )
    tokens = list(greedy.token_ids)
    pairs = [(model.image_features(prompt.images[0])) for model in (fast, portable)]
    if "language" not in precision:
        assert error(*pairs) < PRECISIONS[precision]
    logits = [model.logits(prompt, tokens[:-1]) for model in (fast, portable)]
    if KERNELS is None:
        assert np.array_equal(*logits)
    assert error(*logits) < PRECISIONS[precision]
    if PRECISIONS[precision] <= 1e-5:
        own = fast.generate(
            asked.messages, images=asked.pictures(), max_new_tokens=12, ignore_eos=True
        )
        assert list(own.token_ids) == tokens


def test_the_switch_takes_the_portable_programs(workshop, monkeypatch):
    folder = workshop.build(NAME).bundle
    monkeypatch.setenv("VLMC_KERNELS", "off")
    model = opened(folder, portable=False)
    assert model.engine.portable == "VLMC_KERNELS=off"
    assert model.engine.kernels == "onnxruntime"
    monkeypatch.delenv("VLMC_KERNELS")
    engine = opened(folder, portable=False).engine
    if KERNELS:
        assert (engine.portable, engine.kernels) == (
            "",
            f"onnxruntime, {native.instructions()} kernels of vlmc",
        )
    else:
        assert engine.portable
        assert engine.kernels == "onnxruntime"


@pytest.mark.parametrize("split", ["dual", "single"])
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_large_bundle_is_run_by_kernels_that_read_its_weights_where_they_are(
    workshop, tmp_path, monkeypatch, split, precision
):
    folder = workshop.build(NAME, f"split={split}", f"precision={precision}").bundle
    asked = [
        {
            "name": question.name,
            "messages": golden.messages_of(question),
            "images": [
                str(tmp_path / f"{question.name}-{at}") for at in range(len(question.sizes))
            ],
            "forced": None,
            "max_new_tokens": 3,
        }
        for question in golden.QUESTIONS
    ]
    for question, one in zip(golden.QUESTIONS, asked, strict=True):
        for size, path in zip(question.sizes, one["images"], strict=True):
            Path(path).write_bytes(golden.picture(size))
    questions = tmp_path / "questions.json"
    questions.write_text(json.dumps(asked), encoding="utf-8")
    whole = replay._opened(read_bundle(folder))
    expected = {one["name"]: replay._answer(whole, one) for one in asked}
    monkeypatch.setattr(replay, "WHOLE_BYTES", 0)
    monkeypatch.setattr(in_place, "HELD_BYTES", 0)
    replay.replay(folder, questions, tmp_path)
    for name, answer in expected.items():
        with np.load(tmp_path / f"{name}.npz") as found:
            assert set(found) == answer.keys()
            assert bool(found["portable"]) == (KERNELS is None)
            for key, values in answer.items():
                if KERNELS:
                    assert np.array_equal(found[key], values), key
                else:  # piece by piece
                    np.testing.assert_allclose(found[key], values, atol=2e-3, err_msg=key)
        assert not (tmp_path / f"{name}{replay.KERNELS}.npz").exists()


@pytest.mark.parametrize("program", ["vision", "language"])
def test_both_kernels_programs_of_a_large_bundle_are_opened_whatever_is_asked(
    workshop, tmp_path, monkeypatch, program
):
    folder = shutil.copytree(workshop.build(NAME).bundle, tmp_path / "bundle")
    questions = tmp_path / "questions.json"
    questions.write_text("[]", encoding="utf-8")
    monkeypatch.setattr(replay, "WHOLE_BYTES", 0)
    replay.replay(folder, questions, tmp_path)
    file = folder / f"programs/{program}.kernels.onnx"
    graph = file.read_bytes()
    operator = b"Attention" if program == "vision" else b"RotaryAttention"
    for old, new in ((b"num_heads", b"num_hands"), (operator, b"T" * len(operator))):
        assert old in graph
        file.write_bytes(graph.replace(old, new))
        if KERNELS is None:
            replay.replay(folder, questions, tmp_path)
            continue
        with pytest.raises(VlmcError, match="onnxruntime refuses the program"):
            replay.replay(folder, questions, tmp_path)


@pytest.mark.parametrize("step", [-1, 1])
def test_kernels_of_another_version_leave_a_bundle_to_the_portable_programs(
    workshop, tmp_path, step
):
    folder = shutil.copytree(workshop.build(NAME).bundle, tmp_path / "bundle")
    file = folder / "programs/language.kernels.onnx"
    model = onnx.load(file, load_external_data=False)
    [imported] = [one for one in model.opset_import if one.domain == DOMAIN]
    imported.version += step
    file.write_bytes(model.SerializeToString())
    engine = opened(folder, portable=False).engine
    assert engine.kernels == "onnxruntime"
    assert ("build the bundle again" in engine.portable) == bool(KERNELS)


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_machine_without_kernels_builds_the_same_bundle(
    workshop, tmp_path, monkeypatch, precision
):
    """Goldens too: they are those of the portable programs."""
    words = (NAME, f"precision={precision}", "ctx-len=256")
    made = workshop.build(*words, out=tmp_path / "with", cache=tmp_path / "cache")
    monkeypatch.setenv("VLMC_KERNELS", "off")
    other = workshop.build(*words, out=tmp_path / "without", cache=tmp_path / "other")
    assert not any(record.hit for record in other.passes)
    files, others = contents(made.bundle), contents(other.bundle)
    assert {path for path in files if files[path] != others.get(path)} == set()
    assert files.keys() == others.keys()
    assert "goldens/cases.json" in files
