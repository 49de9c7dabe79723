"""A measurement is of the seed alone: what else differs between two evaluations is the same in both."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import fxgraft
from fxgraft import SeedManager
from tests.harness import assert_same_bits, frozen
from tests.networks import NormNet

DATA = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))


def zero(width: int) -> nn.Module:
    """A seed that adds nothing, with a stream of its own."""
    layer = nn.Linear(width, width)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Dropout(0.5), layer)


def grown(module: nn.Module | None = None, **compiled: Any) -> tuple[fxgraft.Host, SeedManager]:
    torch.manual_seed(0)
    host = fxgraft.trace(NormNet(hidden=8, dropout=0.5), (DATA[:4],))
    if compiled:
        host.compile(**compiled)
    manager = SeedManager(host, check_every=0)
    manager.germinate("first", zero(8) if module is None else module, name="a")
    return host, manager


OWN = torch.Generator().manual_seed(5)
NUMPY, PYTHON = np.random.default_rng(5), random.Random(5)


class Evaluation:
    """An object that is called."""

    def __init__(self, host: nn.Module):
        self.host, self.draws = host, {"own": torch.Generator().manual_seed(2)}

    def __call__(self) -> Tensor:
        return self.run()

    def run(self) -> Tensor:
        return _loss(self.host, torch.randn(4, 6, generator=self.draws["own"]))


def _loss(host: nn.Module, *batches: Tensor) -> Tensor:
    return torch.stack([host(batch).square().mean() for batch in batches]).mean()


def _shuffled(**options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(DATA), batch_size=4, **options)


def _first(host: nn.Module, loader: DataLoader[Any]) -> Tensor:
    return _loss(host, next(iter(loader))[0])


EVALUATIONS: dict[str, Callable[[nn.Module], Callable[[], Any]]] = {
    "dropout": lambda host: lambda: _loss(host, DATA),
    "torch's stream": lambda host: lambda: _loss(host, torch.randn(4, 6)),
    "NumPy's stream": lambda host: lambda: _loss(host, DATA * float(np.random.rand())),
    "Python's stream": lambda host: lambda: _loss(host, DATA * random.random()),
    "a loader that shuffles": lambda host: functools.partial(_first, host, _shuffled(shuffle=True)),
    "a loader with a generator": lambda host: functools.partial(
        _first, host, _shuffled(shuffle=True, generator=torch.Generator().manual_seed(3))
    ),
    "a sampler with a generator": lambda host: functools.partial(
        _first, host, _shuffled(sampler=RandomSampler(DATA, generator=torch.Generator().manual_seed(3)))
    ),
    "a global generator": lambda host: lambda: _loss(host, torch.randn(4, 6, generator=OWN)),
    "one of NumPy's": lambda host: lambda: _loss(host, DATA * float(NUMPY.random())),
    "one of Python's": lambda host: lambda: _loss(host, DATA * PYTHON.random()),
    "an object": Evaluation,
    "a method": lambda host: Evaluation(host).run,
    "train and eval": lambda host: lambda: _loss(host.eval(), DATA) + _loss(host.train(), DATA),
}


def _streams() -> list[Any]:
    of_numpy = np.random.get_state()
    own = [OWN.get_state(), NUMPY.bit_generator.state["state"]["state"], PYTHON.getstate()]
    legacy = [of_numpy[0], of_numpy[1].tolist(), *of_numpy[2:]]
    return [torch.get_rng_state(), random.getstate(), legacy, *own]


@pytest.mark.parametrize("what", EVALUATIONS)
def test_a_seed_that_is_zero_contributes_exactly_nothing(what: str) -> None:
    host, manager = grown()
    before, streams = frozen(dict(host.named_buffers())), _streams()
    evaluate = EVALUATIONS[what](host)
    assert manager.measure("a", evaluate) == 0.0
    assert_same_bits(dict(host.named_buffers()), before, "the buffers")
    assert _same(_streams(), streams)
    assert manager.measure("a", evaluate, at=0.5) == 0.0
    assert host.training


def _same(now: Any, before: Any) -> bool:
    if isinstance(now, Tensor):
        return torch.equal(now, before)
    if isinstance(now, (list, tuple)):
        return len(now) == len(before) and all(map(_same, now, before))
    return bool(now == before)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("granularity", ["host", "region"])
def test_under_a_compiler(granularity: str) -> None:
    host, manager = grown(backend="aot_eager", granularity=granularity)
    host(DATA[:4]).sum().backward()
    manager.step()
    before, streams = frozen(dict(host.named_buffers())), _streams()
    assert manager.measure("a", lambda: _loss(host, DATA[:4])) == 0.0
    assert_same_bits(dict(host.named_buffers()), before, "the buffers")
    assert _same(_streams(), streams)


@given(st.lists(st.sampled_from(sorted(EVALUATIONS)), min_size=1, max_size=3), st.booleans())
def test_any_mixture_is_measured_twice_alike(kinds: list[str], is_zero: bool) -> None:
    """The same measurement again is the same to the bit: it left everything as it was."""
    host, manager = grown(None if is_zero else nn.Linear(8, 8))
    parts = [EVALUATIONS[kind](host) for kind in kinds]

    def evaluate() -> float:
        return sum(float(part()) for part in parts)

    found = manager.measure("a", evaluate)
    assert manager.measure("a", evaluate) == found
    assert (found == 0.0) is is_zero


def test_an_evaluation_that_raises_leaves_everything_as_it_was() -> None:
    host, manager = grown()
    before, streams = frozen(dict(host.named_buffers())), _streams()

    def evaluate() -> Tensor:
        host.eval()(DATA), host.train()(DATA)
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        manager.measure("a", evaluate)
    assert_same_bits(dict(host.named_buffers()), before, "the buffers")
    assert _same(_streams(), streams)
    seed = manager.seeds["a"]
    assert (seed.alpha, seed.stage, seed.contribution) == (0.0, fxgraft.Stage.TRAINING, None)
    assert host._links.borrowed is None


def test_where_autocast_is_on_weights_that_change_afterwards_are_cast_anew() -> None:
    host, manager = grown()
    host.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        manager.measure("a", lambda: _loss(host, DATA))
        with torch.no_grad():
            for parameter in host.parameters():
                parameter.mul_(2)
        inside = host(DATA).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same_bits(inside, host(DATA).detach(), "outputs")
