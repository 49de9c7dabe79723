"""`manager.fuse` compares all settings of modules, also those that the example call does not show."""

import pytest
import torch
from torch import nn

from fxgraft.errors import SlotError
from tests.resizing.test_fusing import BATCH, Activated, grown
from tests.resizing.test_widening import outputs


class Limited(nn.Module):
    """Two layers with a setting of its own between them, of any kind."""

    def __init__(self, limit, hidden=8):
        super().__init__()
        self.limit, self.hidden = limit, hidden
        self.up, self.down = nn.Linear(4, hidden), nn.Linear(hidden, 3)

    def forward(self, x):
        return self.down(self.up(x).tanh())


class Scaled(Limited):
    """With a number in a buffer."""

    def __init__(self, factor, hidden=8):
        super().__init__(None, hidden)
        self.register_buffer("factor", torch.tensor(factor))

    def forward(self, x):
        return self.down(self.up(x).tanh().clamp(max=self.factor))


def scaled(factor):
    return lambda x: factor * x


def between(*layers, hidden=8):
    return nn.Sequential(nn.Linear(4, hidden), *layers, nn.Linear(hidden, 3))


@pytest.mark.parametrize(
    ("part", "seed", "said"),
    [
        (between(nn.ReLU()), between(nn.ReLU6()), "has a ReLU6 where part.1 is a ReLU"),
        (between(nn.Hardtanh(0, 6)), between(nn.Hardtanh(0, 2)), "has max_val=2 where part.1"),
        (between(nn.Dropout(0.5)), between(nn.Identity()), "has a Identity where part.1 is a Dropout"),
        (between(nn.Dropout(0.1)), between(nn.Dropout(0.8)), "has p=0.8 where part.1 has p=0.1"),
        (between(nn.ReLU(inplace=True)), between(nn.ReLU()), "has inplace=False"),
        (between(nn.BatchNorm1d(8)), between(nn.BatchNorm1d(8, momentum=0.01)), "has momentum=0.01"),
        (between(nn.ReLU()), nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), "parameters"),
        (Limited(6), Limited(2), "has limit=2"),
        (Limited((1, 2.0)), Limited((1, 3.0)), "has limit="),
        (Limited(torch.float32), Limited(None), "has limit=None"),
        (Limited([nn.Hardtanh(0, 6)]), Limited([nn.Hardtanh(0, 2)]), "has limit="),
        (Limited(torch.tanh), Limited(torch.sigmoid), "has limit="),
        (Scaled(2.0), Scaled(3.0), "has factor="),
    ],
)
def test_settings_that_the_example_does_not_show_are_compared(part, seed, said):
    *_, manager = grown(part, seed)
    with pytest.raises(SlotError, match=said):
        manager.fuse("a")
    assert manager.seeds


@pytest.mark.parametrize(
    ("part", "seed"),
    [
        (between(nn.Dropout(0.5)), between(nn.Dropout(0.5), hidden=5)),
        (between(nn.BatchNorm1d(8)), between(nn.BatchNorm1d(5), hidden=5)),
        (Limited((1, nn.ReLU(), [None, torch.tanh])), Limited((1, nn.ReLU(), [None, torch.tanh]), 5)),
        (Scaled(2.0), Scaled(2.0, 5)),
        (Limited(scaled(2)), Limited(scaled(2), 5)),
    ],
)
def test_equal_settings_and_other_sizes_are_fused(part, seed):
    *_, manager = grown(part, seed)
    assert list(manager.fuse("a")) == ["a"]


def test_settings_are_compared_where_layers_are_matched_by_their_graph():
    seed = Activated(nn.Hardtanh(0, 2))
    *_, manager = grown(between(nn.Hardtanh(0, 6)), seed, slot="part.2")
    with pytest.raises(SlotError, match="has max_val=2 where"):
        manager.fuse("a")


class Heads(nn.Module):
    """Divides its channels by a number that it has as an attribute."""

    def __init__(self, heads):
        super().__init__()
        self.heads = heads
        self.up, self.down = nn.Linear(4, 4 * heads), nn.Linear(4 * heads, 3)

    def forward(self, x):
        heads = self.up(x).view(-1, self.heads, 4).softmax(-1)
        return self.down(heads.flatten(1))


def test_a_number_of_heads_is_the_sum_of_both():
    host, _, manager = grown(Heads(4), Heads(2))
    before = outputs(host, BATCH)
    manager.fuse("a")
    assert (host.part.heads, host.part.up.out_features) == (6, 24)
    torch.testing.assert_close(outputs(host, BATCH), before)
