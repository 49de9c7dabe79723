"""Sizes that follow the input: what is explored by itself runs with inputs of other sizes, too."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxgraft
from fxgraft.commands import SEED
from fxgraft.explore._fitting import _places
from fxgraft.explore._other_sizes import other_shapes

WIDTH, WORDS = 16, 20


class Attention(nn.Module):
    """Its scores, and its values by head, have sizes that follow the length."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WORDS)

    def forward(self, ids):
        x = self.embedding(ids)
        count, length, _ = x.shape
        q, k, v = (part.view(count, length, 4, 4).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        scores = torch.softmax(q @ k.transpose(-2, -1) / 2, -1)
        return self.out(x + (scores @ v).transpose(1, 2).reshape(count, length, WIDTH))


class Convolution(nn.Module):
    """(N, C, L) in between."""

    def __init__(self):
        super().__init__()
        self.embedding, self.conv = nn.Embedding(WORDS, WIDTH), nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.out = nn.Linear(WIDTH, WORDS)

    def forward(self, ids):
        return self.out(torch.relu(self.conv(self.embedding(ids).transpose(1, 2))).transpose(1, 2))


class Mixer(nn.Module):
    """It mixes along the length, which therefore never changes."""

    def __init__(self):
        super().__init__()
        self.embedding, self.mix = nn.Embedding(WORDS, WIDTH), nn.Linear(9, 9)
        self.out = nn.Linear(WIDTH, WORDS)

    def forward(self, ids):
        return self.out(torch.relu(self.mix(self.embedding(ids).transpose(1, 2))).transpose(1, 2))


class Fully(nn.Module):
    """A convolutional network for images of any size."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        return self.out(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


def ids(count: int, length: int) -> torch.Tensor:
    return torch.randint(0, WORDS, (count, length))


def traced(model: type[nn.Module], *example: torch.Tensor) -> fxgraft.Host:
    torch.manual_seed(0)
    return fxgraft.trace(model(), example or (ids(1, 9),))


def shapes(host: fxgraft.Host) -> dict[str, set[tuple[int, ...]]]:
    return {
        name: set(map(tuple, found)) for name, found in other_shapes(host, list(host.slots.values())).items()
    }


@pytest.mark.parametrize("model", [Attention, Convolution])
@pytest.mark.parametrize("count", [1, 3])
def test_an_automatic_exploration_lives_through_inputs_of_any_length(model, count, caplog):
    host = traced(model, ids(count, 9))
    optimizer = torch.optim.SGD(host.parameters(), 0.01)
    manager = fxgraft.SeedManager(host, optimizer)
    held_out = ids(4, 7)
    found = manager.explore(
        "auto",
        blueprints=["mlp", "attention", "squeeze_excite"],
        evaluate=lambda: F.cross_entropy(host(held_out).flatten(0, 1), held_out.flatten()),
        steps=4,
    )
    for step in range(4):
        batch = ids(4, 5 + step)
        optimizer.zero_grad()
        F.cross_entropy(host(batch).flatten(0, 1), batch.flatten()).backward()
        optimizer.step()
        manager.step()
    explored = [row for row in found.table if row.status != "left out"]
    assert explored, found
    assert all(row.contribution is not None for row in explored), found
    assert not [record for record in caplog.records if "did not run" in record.message]


def test_shapes_are_those_of_calls_with_other_sizes():
    host = traced(Attention)
    assert shapes(host)["softmax"] == {(2, 4, 9, 9), (1, 4, 8, 8)}
    assert shapes(host)["qkv"] == {(2, 9, 48), (1, 8, 48)}


def test_without_numbers_the_same_is_seen(monkeypatch: pytest.MonkeyPatch):
    """As on an accelerator, where an index out of range would end the process; and for large models."""
    expected = shapes(traced(Attention))
    monkeypatch.setattr("fxgraft_passes.channels.subject._SMALL", 0)
    host = traced(Attention)
    before = {name: tensor.clone() for name, tensor in host.state_dict().items()}
    assert shapes(host) == expected
    assert all(torch.equal(tensor, before[name]) for name, tensor in host.state_dict().items())


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_a_sparse_input_stays_as_it_is(layout):
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x, adjacency):
            return self.b(torch.relu(torch.sparse.mm(adjacency, self.a(x))))

    torch.manual_seed(0)
    adjacency = torch.eye(5).to_sparse(layout=layout)
    host = fxgraft.trace(Graph(), (torch.randn(5, 4), adjacency))
    assert shapes(host)["b"] == set()  # five nodes, or it does not run
    assert shapes(host)["a"] == {(4, 8)}
    manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 0.01))
    manager.explore(["b"], evaluate=lambda: host(torch.ones(5, 4), adjacency).sum(), steps=1)


def test_what_fails_with_another_size_is_as_in_the_example():
    host = traced(Mixer)
    assert shapes(host)["mix"] == {(2, WIDTH, 9)}  # another batch; of another length nothing is known
    manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 0.01))
    found = manager.explore(["mix"], blueprints=["mlp"], evaluate=lambda: host(ids(2, 9)).sum(), steps=1)
    assert [row.status for row in found.table] == ["learning"]


def test_images_of_any_size():
    host = traced(Fully, torch.randn(1, 3, 12, 12))
    assert shapes(host)["a"] >= {(2, 8, 10, 10), (1, 8, 9, 10), (1, 8, 10, 9)}
    manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 0.01))
    with pytest.raises(ValueError, match=r"mlp at slot 'a': it is made for \(1, 8, 10, 10\)"):
        manager.explore(["a"], blueprints=["mlp"], evaluate=lambda: 0.0)  # of 10 columns


def test_a_command_is_taken_at_its_word():
    host = traced(Convolution)
    manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 0.01))
    manager.explore([SEED(slot="conv", blueprint="mlp")], evaluate=lambda: host(ids(2, 9)).sum(), steps=1)


def test_looking_leaves_the_host_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU())
    host = fxgraft.trace(model, (torch.randn(2, 3, 9),))
    before = {name: tensor.clone() for name, tensor in host.state_dict().items()}
    stream, hooks = torch.get_rng_state(), len(model[0]._forward_pre_hooks)
    assert shapes(host)["3"] == {(1, 4, 7), (2, 4, 6)}
    assert host.training
    assert len(model[0]._forward_pre_hooks) == hooks
    assert torch.equal(stream, torch.get_rng_state())
    for name, tensor in host.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_parts_of_one_chunk_are_places_of_their_own():
    host = traced(Attention)
    manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 0.01))
    parts = [name for name in host.slots if name.startswith("getitem")]
    assert len(parts) == 3
    found = manager.explore(parts, blueprints=["mlp"], evaluate=lambda: host(ids(2, 9)).sum(), steps=1)
    assert sorted(row.slot for row in found.table if row.status == "learning") == parts


def test_a_square_and_its_transpose_are_two_places():
    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.b(self.a(x).t())

    torch.manual_seed(0)
    host = fxgraft.trace(Square(), (torch.randn(8, 8),))
    assert [(slot.name, twin) for slot, twin in _places(list(host.slots.values()))][:2] == [
        ("a", None),
        ("t", None),
    ]
