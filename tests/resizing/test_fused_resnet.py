"""A ResNet in which branches of convolutions and linear fossils become a part of its layers."""

import torch
from torch import nn

from tests.harness import assert_same_bits
from tests.resizing.test_real_models import Run


class Stage(nn.Module):
    """A part of a ResNet beside which a branch of its own form can be tried: conv, norm, ReLU, conv."""

    def __init__(self, hidden: int = 6):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, 8, 3, padding=1, bias=False)

    def forward(self, x):
        return self.conv2(self.bn1(self.conv1(x)).relu())


class PreActivated(nn.Module):
    def __init__(self, hidden: int = 6):
        super().__init__()
        self.bn, self.part = nn.BatchNorm2d(8), Stage(hidden)

    def forward(self, x):
        return x + self.part(self.bn(x).relu())


class ResNetV2(nn.Module):
    """A ResNet with the activations in front."""

    def __init__(self, hidden: int = 6):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, bias=False)
        self.layer1 = nn.Sequential(PreActivated(hidden), PreActivated())
        self.bn, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.bn(self.layer1(self.conv1(x))).relu().mean((2, 3)))


def test_branches_and_linear_fossils_of_a_resnet_are_fused(tmp_path):
    torch.manual_seed(0)
    batch = torch.randn(3, 3, 9, 9)
    run = Run(ResNetV2(), batch, {})
    run.train(2)
    run.manager.germinate("layer1.0.part", Stage(4), source="layer1.0.relu", name="wing", isolated=False)
    linear = nn.Conv2d(8, 8, 1, bias=False)
    run.manager.germinate("conv1", linear, name="linear", isolated=False)
    run.train(2)
    for name in ("wing", "linear"):
        run.manager.blend(name, steps=0)
    run.train()
    before = run.outputs()
    with run.manager.together():
        for name in ("wing", "linear"):
            run.manager.fossilize(name)
        into = run.manager.fuse()
        run.manager.deepen("layer1", at="end")
        run.manager.widen("layer1.1.part.conv1", 2)
    assert dict(into) == {"wing": "layer1.0.part.conv1", "linear": "conv1"}
    torch.testing.assert_close(run.outputs(), before, rtol=1e-4, atol=1e-5)
    norm = run.host.layer1[0].part.bn1
    assert (norm.num_features, norm.running_var.shape) == (10, (10,))
    run.train()
    run.manager.save(tmp_path / "run")
    again = Run(ResNetV2(), batch, {}, tmp_path / "run")
    for one in (run, again):
        one.train()
    assert_same_bits(again.host.state_dict(), run.host.state_dict())
