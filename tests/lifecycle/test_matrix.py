"""Stage x mode x the ways to run a model: precision, checkpointing, accumulation, layout, compiling.

In TRAINING the host is to the bit what it is without the seed, in each way. In the other stages a way that
changes nothing for a plain module changes nothing here: the result is that of the plain call.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxgraft
from fxgraft import SeedManager, Stage
from fxgraft.errors import StageError
from tests.covering import covering_pairs
from tests.harness import assert_same_bits, frozen, traced_once

STAGES = [Stage.DORMANT, Stage.TRAINING, Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED]
MODES = ["residual", "convex", "gated", "channelwise"]
SLOT = "1"


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(144, 5)
    )


@traced_once
def traced() -> fxgraft.Host:
    return fxgraft.trace(model(), (X,))


def seed_module() -> nn.Module:
    torch.manual_seed(1)
    return nn.Conv2d(4, 4, 1)


X = torch.linspace(-1, 1, 4 * 3 * 8 * 8).view(4, 3, 8, 8)
Y = torch.tensor([0, 1, 2, 3])


def criterion(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output.float(), target)


def brought_to(stage: Stage, mode: str, prepare: Callable[[fxgraft.Host], None] | None = None) -> Any:
    """A host with a seed in that stage, without a step of any optimizer."""
    host = traced()
    if prepare is not None:
        prepare(host)
    manager = SeedManager(host, check_every=0)
    if stage is Stage.DORMANT:
        return host, manager
    manager.germinate(SLOT, seed_module(), name="a", mode=mode)
    if stage is not Stage.TRAINING:
        manager.blend("a", to=0.5, steps=4 if stage is Stage.BLENDING else 1)
        manager.step()
        if stage is Stage.FOSSILIZED:
            manager.fossilize("a")
    assert manager.seeds["a"].stage is stage
    return host, manager


Run = Callable[[nn.Module], Tensor]


def plain(host: nn.Module) -> Tensor:
    return criterion(host(X), Y)


def autocast(host: nn.Module) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return criterion(host(X), Y)


def checkpointed(host: nn.Module, use_reentrant: bool) -> Tensor:
    inputs = X.clone().requires_grad_()  # reentrant checkpointing wants an input with a gradient
    return criterion(checkpoint(host, inputs, use_reentrant=use_reentrant), Y)


def channels_last(host: nn.Module) -> Tensor:
    return criterion(host(X.to(memory_format=torch.channels_last)), Y)


WAYS: dict[str, Run] = {
    "plain": plain,
    "autocast bfloat16": autocast,
    "checkpointed": lambda host: checkpointed(host, use_reentrant=False),
    "checkpointed, reentrant": lambda host: checkpointed(host, use_reentrant=True),
    "channels_last": channels_last,
}
CHANGE_NOTHING = {"plain", "checkpointed", "checkpointed, reentrant"}


def gradients(host: nn.Module, run: Run) -> dict[str, Any]:
    for parameter in host.parameters():
        parameter.grad = None
    loss = run(host)
    loss.backward()
    return {"loss": loss.detach(), **{n: frozen(p.grad) for n, p in host.named_parameters()}}


def of_host(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if not name.startswith("_seeds.")}


@pytest.mark.parametrize(("way", "stage", "mode"), covering_pairs(product(WAYS, STAGES, MODES)))
def test_each_way_in_each_stage_and_mode(way: str, stage: Stage, mode: str) -> None:
    host, _ = brought_to(stage, mode)
    found = gradients(host, WAYS[way])
    if stage in (Stage.DORMANT, Stage.TRAINING):
        assert_same_bits(of_host(found), gradients(model(), WAYS[way]), f"the host, {way}")
    if way in CHANGE_NOTHING:
        assert_same_bits(found, gradients(host, plain), f"{way} and plain")
    if way == "channels_last":
        torch.testing.assert_close(found, gradients(host, plain))
    if stage is not Stage.DORMANT:
        assert all(value is not None for name, value in found.items() if name.startswith("_seeds."))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stage", STAGES, ids=lambda s: s.name)
def test_gradients_accumulate(stage: Stage, mode: str) -> None:
    """Two halves of a batch: the host's gradients as those of a plain model that accumulates."""
    host, _ = brought_to(stage, mode)

    def halves(net: nn.Module) -> dict[str, Any]:
        for part in (slice(0, 2), slice(2, 4)):
            (criterion(net(X[part]), Y[part]) / 2).backward()
        return {n: frozen(p.grad) for n, p in net.named_parameters()}

    found = halves(host)
    if stage in (Stage.DORMANT, Stage.TRAINING):
        assert_same_bits(of_host(found), halves(model()), "the host")
    else:
        whole = gradients(host, plain)
        torch.testing.assert_close(found, {name: whole[name] for name in found})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stage", STAGES, ids=lambda s: s.name)
def test_compiled(stage: Stage, mode: str, fresh_compiler: None) -> None:
    """To the bit as in eager mode, under aot_eager."""
    host, _ = brought_to(stage, mode, lambda host: host.compile(backend="aot_eager"))
    eager, _ = brought_to(stage, mode)
    assert_same_bits(gradients(host, plain), gradients(eager, plain), "compiled and eager")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stage", STAGES, ids=lambda s: s.name)
def test_inference_mode_gives_the_value_of_training(stage: Stage, mode: str) -> None:
    host, _ = brought_to(stage, mode)
    with torch.inference_mode():
        value = host(X)
    assert_same_bits(value.clone(), host(X).detach(), "the value")


@pytest.mark.parametrize("mode", MODES)
def test_an_inf_in_a_seed_does_not_skip_the_step_of_a_scaled_host(mode: str) -> None:
    host, manager = brought_to(Stage.TRAINING, mode)
    alone = model()
    results = []
    for net in (host, alone):
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        if net is host:
            with torch.no_grad():
                next(manager.seed_parameters()).fill_(float("inf"))
        scaler.scale(plain(net)).backward()
        scaler.step(optimizer)
        scaler.update()
        results.append({n: frozen(p) for n, p in net.named_parameters()})
        assert scaler.get_scale() == 2.0**10
    assert_same_bits(of_host(results[0]), results[1], "weights after the step")


@pytest.mark.gpu
@pytest.mark.parametrize("stage", STAGES, ids=lambda s: s.name)
def test_cuda_graphs(stage: Stage) -> None:
    """Needs a GPU: "reduce-overhead" records CUDA graphs, whose inputs (alpha among them) stay in place."""
    results = []
    for options in ({}, {"mode": "reduce-overhead"}):

        def prepare(host: fxgraft.Host, options: dict[str, Any] = options) -> None:
            host.cuda()
            if options:
                host.compile(**options)

        host, manager = brought_to(stage, "residual", prepare)
        x, y = X.cuda(), Y.cuda()
        found = []
        for _ in range(4):  # in the first ones the graphs are recorded
            host.zero_grad()
            out = host(x)
            criterion(out, y).backward()
            found += [out.detach().clone(), *(frozen(p.grad) for p in host.parameters())]
            manager.step()
        results.append(found)
        if options:
            assert not any(v.distrusted for v in fxgraft.compile_report(host).variants)
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-4)  # of convolutions in TF32


def test_commands_inside_a_shadow_pass_are_refused() -> None:
    host, manager = brought_to(Stage.TRAINING, "residual")
    with manager.shadow(), pytest.raises(StageError, match="inside shadow"):
        manager.blend("a")
    criterion(host(X), Y).backward()
