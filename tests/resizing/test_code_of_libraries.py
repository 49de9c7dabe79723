"""Code as libraries write it, whose channels were taken for ones that cannot grow."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxgraft
from tests.resizing.test_widening import outputs


class Dense(nn.Module):
    """As a DenseNet: layers read the list of what came before, to which the results are appended."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4 + 2 * i) for i in range(3))
        self.layers = nn.ModuleList(nn.Conv2d(4 + 2 * i, 2, 3, padding=1) for i in range(3))
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        features = [self.stem(x)]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            features.append(layer(norm(torch.cat(features, 1)).relu()))
        return self.head(torch.cat(features, 1).mean((2, 3)))


class Masked(nn.Module):
    """As a masked autoencoder: it draws numbers in eval mode, too."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        kept = torch.rand(x.shape[:2], device=x.device) < 0.5
        return self.down(F.gelu(self.up(x * kept[..., None])))


class Dropping(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.up, self.part, self.down = nn.Conv2d(3, 8, 1), part, nn.Conv2d(8, 3, 1)

    def forward(self, x):
        return self.down(self.part(self.up(x)).relu())


IMAGE = torch.randn(2, 3, 5, 5)


@pytest.mark.parametrize(
    ("make", "batch", "groups"),
    [
        (Dense, IMAGE, ["stem", "layers.0", "layers.1", "layers.2"]),
        (Masked, torch.randn(2, 6, 4), ["up"]),
        (lambda: Dropping(nn.Dropout2d(0.5)), IMAGE, ["up"]),
    ],
    ids=["dense", "masked", "dropout of channels"],
)
def test_they_grow_and_keep_the_function(make, batch, groups):
    torch.manual_seed(0)
    host = fxgraft.trace(make(), (batch,))
    manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), lr=0.1), check_every=0)
    assert [name for name, group in host.channels.items() if group.fixed is None] == groups
    for name in groups:
        torch.manual_seed(1)
        before = outputs(host, batch)
        stream = torch.get_rng_state()
        manager.widen(name, 2)
        assert torch.equal(torch.get_rng_state(), stream)
        torch.manual_seed(1)
        torch.testing.assert_close(outputs(host, batch), before)
