"""Weights that stay in their file, against the same weights in memory."""

import numpy as np
import pytest

from vlmc.passes import checkpoint
from vlmc.passes.checkpoint_index import read_index


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """A small model whose parents read their children's weights, whole and streamed; the reads."""
    import torch
    from safetensors.torch import save_file

    from vlmc.passes import streamed

    class Shifted(torch.nn.Embedding):  # as OPT's positions
        def forward(self, ids):
            return super().forward(ids + 2)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words = torch.nn.Embedding(40, 12, padding_idx=0)
            self.places = Shifted(22, 12)
            self.up = torch.nn.Linear(12, 30)
            self.conv = torch.nn.Conv1d(30, 30, 3, groups=30, padding=1, bias=False)
            self.experts = torch.nn.Parameter(torch.empty(5, 30, 30))
            self.line = torch.nn.Parameter(torch.empty(30))
            self.head = torch.nn.Linear(30, 40, bias=False)

        def forward(self, ids):
            x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
            x = x + self.places.weight[: ids.shape[1]]  # as a table that is stretched
            x = self.up(x.to(self.up.weight.dtype))
            x = torch.nn.functional.conv1d(
                x.mT, self.conv.weight, groups=30, padding=1
            ).mT  # its own forward is never called
            for expert in (1, torch.tensor(3)):
                x = x @ self.experts[expert]
            x = torch.cat([x, self.line.expand(*x.shape[:1], 1, 30)], dim=1)
            return self.head(x)

    torch.manual_seed(1)
    whole, model = Model().eval(), Model().eval()
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.normal_()
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    index = read_index(tmp_path)
    streamed.stream_weights(model, index, {name: name for name in whole.state_dict()})
    read = []
    stored = checkpoint.read_stored

    def counted(ref, start, stop):
        read.append((ref.name, stop - start))
        return stored(ref, start, stop)

    monkeypatch.setattr(streamed, "read_stored", counted)
    return whole, model, read


def test_what_is_streamed_gives_the_same_numbers(pair):
    import torch

    whole, model, _ = pair
    ids = torch.tensor([[3, 39, 3, 0], [1, 7, 5, 20]])
    with torch.no_grad():
        np.testing.assert_allclose(model(ids).numpy(), whole(ids).numpy(), rtol=1e-5, atol=1e-5)


def test_no_more_is_read_than_is_needed(pair, monkeypatch):
    import torch

    from vlmc.passes import streamed

    _, model, read = pair
    assert model.head.weight.shape == (40, 30)
    assert (model.head.weight.dtype, model.experts.ndim) == (torch.float32, 3)
    assert sum(parameter.numel() for parameter in model.parameters()) > 4500
    assert not read
    monkeypatch.setattr(streamed, "_PIECE_BYTES", 16 * 30 * 4)
    with torch.no_grad():
        model(torch.tensor([[3, 39, 3, 3]]))
    rows = {name: [n for of, n in read if of == name] for name in dict(read)}
    assert rows["words.weight"] == [1, 1]
    assert rows["head.weight"] == [16, 16, 8]
    assert rows["experts"] == [1, 1]


def test_a_product_is_held_once(pair, monkeypatch):
    """Pieces of a long prompt's logits that are joined would be there twice."""
    import torch

    from vlmc.passes import streamed

    whole, model, _ = pair
    x = torch.randn(7, 30)
    with torch.no_grad():
        expected = torch.nn.functional.linear(x, whole.head.weight, torch.ones(40))
        monkeypatch.setattr(streamed, "_PIECE_BYTES", 16 * 30 * 4)
        monkeypatch.setattr(torch, "cat", None)
        found = torch.nn.functional.linear(x, model.head.weight, torch.ones(40))
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_shares_of_all_rows_are_summed_piece_by_piece(pair, monkeypatch):
    import torch

    from vlmc.passes import streamed

    whole, model, read = pair
    monkeypatch.setattr(streamed, "_PIECE_BYTES", 8 * 4 * 12)
    shares = torch.softmax(torch.randn(2, 3, 40), dim=-1)
    with torch.no_grad():
        found = torch.matmul(shares, model.words.weight)
        expected = torch.matmul(shares, whole.words.weight)
        experts = torch.matmul(torch.ones(5, 2, 30), model.experts)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)
    assert experts.shape == (5, 2, 30)
    assert read == [("words.weight", 8)] * 5 + [("experts", 5)]


def test_a_row_is_read_by_itself(pair):
    import torch

    whole, model, read = pair
    for at in (4, (4, slice(None)), torch.tensor(4)):
        assert torch.equal(model.words.weight[at], whole.words.weight[at])
    assert read == [("words.weight", 1)] * 3


def test_a_large_matrix_is_shared_among_threads_that_compute_alone(tmp_path):
    """And gives what torch gives, whatever else it is multiplied with."""
    import torch
    from safetensors.torch import save_file

    from vlmc.passes.streamed import serve, stream_weights, workers

    count = torch.get_num_threads()
    line = torch.nn.Linear(2500, 3500, bias=False)
    expected = [torch.randn(2, rows, 2500) for rows in (1, 40)]
    save_file(line.state_dict(), tmp_path / "model.safetensors")
    with torch.no_grad():
        inputs, expected = expected, [line(x) for x in expected]
    stream_weights(line, read_index(tmp_path), {"weight": "weight"})
    found = serve(line.weight, inputs)
    for here, there in zip(found, expected, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)
    assert torch.equal(serve(line.weight, inputs[1:])[0], found[1])
    assert torch.get_num_threads() == count
    assert workers().submit(torch.get_num_threads).result() == 1


def test_stored_bfloat16_is_multiplied_as_in_float32(tmp_path, monkeypatch):
    """By tiles where there are any; the bits are the same whoever else asks."""
    import torch
    from safetensors.torch import save_file

    from vlmc.passes import streamed

    line = torch.nn.Linear(256, 300, bias=False, dtype=torch.bfloat16)
    save_file(line.state_dict(), tmp_path / "model.safetensors")
    inputs = [torch.randn(2, rows, 256) for rows in (1, 40)]
    expected = [x @ line.weight.detach().float().T for x in inputs]
    streamed.stream_weights(line, read_index(tmp_path), {"weight": "weight"})
    for piece in (streamed._PIECE_BYTES, 1 << 15):
        monkeypatch.setattr(streamed, "_PIECE_BYTES", piece)
        found = streamed.serve(line.weight, inputs)
        for here, there, x in zip(found, expected, inputs, strict=True):
            torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-5)
            assert torch.equal(here, streamed.serve(line.weight, [x])[0])
