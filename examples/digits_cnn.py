"""Grow a CNN on scikit-learn's digits: try several places at once, keep the best.

    python examples/digits_cnn.py [--quick]

Compares with the same training without growing, for one random seed; `make demo` has several.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fxgraft


class Small(nn.Module):
    """Two convolutions over images of 8 by 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 3, padding=1)
        self.conv2 = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.conv2(x))
        return self.head(x.flatten(1))


def digits() -> list[tuple[Tensor, Tensor]]:
    """Training, validation and test data."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    parts = order.split([1000, 400, 397])
    return [(images[part], torch.tensor(found.target)[part]) for part in parts]


class Run:
    """A model in training."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.train_data, self.valid_data, self.test_data = digits()
        self.host = fxgraft.trace(Small(), (self.train_data[0][:64],))
        self.host.compile(backend="aot_eager")  # leave backend out for Inductor
        self.optimizer = torch.optim.AdamW(self.host.parameters(), 3e-3)
        self.manager = fxgraft.SeedManager(self.host, self.optimizer)
        self.shuffle = torch.Generator().manual_seed(1)

    def train(self, steps: int) -> None:
        """The training loop."""
        images, labels = self.train_data
        for _ in range(steps):
            batch = torch.randint(0, len(images), (64,), generator=self.shuffle)
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.host(images[batch]), labels[batch])
            loss.backward()
            self.optimizer.step()
            self.manager.step(loss)

    @torch.no_grad()
    def loss(self) -> Tensor:
        """On the validation data."""
        images, labels = self.valid_data
        return nn.functional.cross_entropy(self.host(images), labels)

    @torch.no_grad()
    def report(self, name: str) -> None:
        """One line."""
        images, labels = self.test_data
        accuracy = (self.host(images).argmax(1) == labels).float().mean()
        size = sum(parameter.numel() for parameter in self.host.parameters())
        print(
            f"{name:<14} validation loss {self.loss():.3f}   test accuracy {accuracy:.1%}   {size} parameters"
        )


def main() -> None:
    """Train, grow, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
    unit = 5 if parser.parse_args().quick else 100

    plain = Run()
    plain.train(12 * unit)
    plain.report("not grown")

    run = Run()
    run.train(5 * unit)
    run.report("before")
    for place, blueprint in {
        "relu": "conv_bottleneck",
        "relu_1": "conv_bottleneck",
        "flatten": "mlp",
    }.items():
        run.manager.germinate(place, blueprint, name=place)
    run.train(2 * unit)  # isolated: the host does not feel them, nor do they feel each other
    for name in run.manager.seeds:
        print(f"  a seed at {name!r} would lower the loss by {run.manager.measure(name, run.loss):+.4f}")
    best = max(run.manager.seeds.values(), key=lambda seed: seed.contribution or 0.0)
    for seed in list(run.manager.seeds.values()):
        if seed is not best:
            run.manager.cull(seed)
    run.manager.blend(best, steps=unit)
    run.train(unit)
    run.manager.fossilize(best)
    run.train(4 * unit)
    run.report(f"grown at {best.slot}")


if __name__ == "__main__":
    main()
