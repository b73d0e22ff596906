"""Traced programs as ONNX graphs, with and without torch's own decomposition, against torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from vlmc.passes.quiet import quiet
from vlmc.passes.translate import rewrite, translate


class Shapes(nn.Module):
    """Every way to shape a tensor, of one whose elements do not lie in their order too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        turned = x.view(x.shape[0], x.shape[1], 4, 6).transpose(1, 2)
        parted = turned.flatten(2).unflatten(2, (-1, 6))
        return parted.transpose(1, 2).reshape(x.shape[0], x.shape[1], 24).to("cpu")


class Types(nn.Module):
    """Conversions, to the same type and to others, and numbers of several."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = (x > 0).__and__(x.to(torch.int64) != 1).__or__(x < -1)
        return x.to(torch.float32) * kept.to(torch.float32) + kept.to(torch.int64) * 0.5


class Sums(nn.Module):
    """Writes in place to a tensor that has one name, as Gemma 3n's decoder does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        before = y + 1
        copy = y.to(torch.float32, copy=True)
        copy *= 3
        y += x
        y *= before
        return y + before + copy


class Parts(nn.Module):
    """Writes to parts of a tensor that is read whole later, as interleaved rotary embeddings do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        angles = torch.stack([x, x * 2, x * 3]) * 0.5
        mixed = angles[0]
        for row in (1, 2):
            mixed[..., row:18:3] = angles[row, ..., row:18:3]
        turned = torch.clone(x * 2).transpose(0, 1)
        turned *= 3
        return torch.cat([mixed, turned.transpose(0, 1)], dim=-1)


class Chosen(nn.Module):
    """Writes to one of an operator's results, and by places, as routers of experts do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shares, chosen = torch.topk(x, 3, dim=-1)
        shares /= shares.sum(dim=-1, keepdim=True) + 100
        mask = torch.zeros_like(x)
        mask.scatter_(-1, chosen, 1)
        return torch.cat([shares, mask], dim=-1)


class Patches(nn.Module):
    """Convolutions without padding, said as SigLIP's patch embedding says it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = torch.arange(18, dtype=torch.float32).reshape(3, 1, 2, 3)
        picture = x.sum(1)[:, None, None].expand(-1, 1, 4, -1) / 100
        made = nn.functional.conv2d(picture, weight, stride=(2, 3), padding="valid")
        return made.flatten(1)


class Mixed(nn.Module):
    """Writes numbers of another type, which what is written does not take over."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        y += x.to(torch.float64)
        return y * 2


class Views(nn.Module):
    """Writes to a tensor that is seen through another, before and after."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        part = y[..., 1:]
        y += 1
        part *= 3
        return torch.cat([y, part], dim=-1)


class Rows(nn.Module):
    """Writes to a part of a tensor that is read by another name later."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.stack([x, x * 2]) * 0.5
        row = both[0]
        row[..., 1:9:2] = x[..., 2:10:2]
        return both.sum(0) + row


class Earlier(nn.Module):
    """Writes to a part of a tensor that was seen through another before."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        seen = y[..., :4]
        y[..., 1:9:2] = x[..., 2:10:2]
        return y[..., :4] + seen


class Quiet(nn.Module):
    """Turns gradients off, as rotary embeddings do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            angles = x.cos()
        return x * angles


class Branch(nn.Module):
    """Control flow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda v: v + 1, lambda v: v - 1, (x,))


def traced(module: nn.Module, x: torch.Tensor) -> Any:
    sizes = {axis: torch.export.Dim(f"size_{axis}") for axis in range(2)}
    with torch.no_grad(), quiet():
        return torch.export.export(module, (x,), dynamic_shapes=(sizes,), strict=False)


@pytest.mark.parametrize(
    "module", [Shapes, Types, Sums, Parts, Chosen, Patches, Quiet], ids=lambda kind: kind.__name__
)
def test_what_models_do_is_rewritten_and_not_traced_again(module, monkeypatch):
    monkeypatch.setattr(
        "torch.export.ExportedProgram.run_decompositions", lambda *_: pytest.fail("traced again")
    )
    answers_as_torch(module())


@pytest.mark.parametrize(
    "module", [Mixed, Views, Rows, Earlier, Branch], ids=lambda kind: kind.__name__
)
def test_anything_else_goes_the_long_way(module):
    assert not rewrite(traced(module(), torch.zeros(3, 5, 24)))
    answers_as_torch(module())


def answers_as_torch(module: nn.Module) -> None:
    import onnx_ir as ir

    with quiet():
        model = translate(traced(module, torch.zeros(3, 5, 24)))
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    for shape in ((2, 7, 24), (1, 1, 24)):
        x = torch.from_numpy(np.random.default_rng(0).normal(size=shape).astype(np.float32) * 2)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        expected = module(x).numpy()
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
