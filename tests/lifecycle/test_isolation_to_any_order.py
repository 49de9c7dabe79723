"""No term of any derivative of the host goes through an isolated seed: programs of several derivatives."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxgraft
from fxgraft import SeedManager
from fxgraft.host import engine
from fxgraft_passes import Phase, operators
from tests.harness import assert_same_bits, frozen, host_names, loss_of
from tests.seed_modules import FITTING
from tests.strategies import Plan, plans

Record = dict[str, Any]
Program = Callable[[nn.Module, Any], Record]

CALM = ("scale", "drawing", "counting", "still")
"""Seeds whose values are finite."""


def learnable(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters, those of seeds included: what people write is ``model.parameters()``."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def of_host(model: nn.Module) -> list[nn.Parameter]:
    named = dict(model.named_parameters())
    return [named[name] for name in host_names(model)]


def derivatives(value: Tensor, wanted: list[Any], **options: Any) -> list[Tensor | None]:
    if not value.requires_grad:
        return [None] * len(wanted)
    return list(torch.autograd.grad(value, wanted, allow_unused=True, **options))


def collected(model: nn.Module, found: list[Tensor | None]) -> Record:
    return {n: frozen(d) for n, d in zip(host_names(model), found, strict=True)}


def squares(tensors: list[Tensor | None]) -> Tensor:
    return sum((t.square().sum() for t in tensors if t is not None), torch.zeros((), dtype=torch.float64))


def gradient_norm(model: nn.Module, x: Any) -> Record:
    """The derivative of the norm of all gradients, twice over: orders 2 and 3."""
    first = derivatives(loss_of(model(x)), list(learnable(model).values()), create_graph=True)
    second = derivatives(squares(first), of_host(model), create_graph=True)
    third = derivatives(squares(second), of_host(model))
    return {"second": collected(model, second), "third": collected(model, third)}


def hessian_product(model: nn.Module, x: Any) -> Record:
    """Of the loss with ones."""
    first = derivatives(loss_of(model(x)), list(learnable(model).values()), create_graph=True)
    along = torch.stack([g.sum() for g in first if g is not None]).sum()
    return {"product": collected(model, derivatives(along, of_host(model)))}


def penalty_in_one_backward(model: nn.Module, x: Any) -> Record:
    """The loss and a penalty on its gradients, accumulated by one ``backward``."""
    loss = loss_of(model(x))
    first = derivatives(loss, list(learnable(model).values()), create_graph=True)
    (loss + 0.1 * squares(first)).backward()
    return {"gradients": {n: frozen(p.grad) for n, p in zip(host_names(model), of_host(model), strict=True)}}


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def backward_of_backward(model: nn.Module, x: Any) -> Record:
    """``backward(create_graph=True)``, then a ``backward`` of what it accumulated."""
    loss_of(model(x)).backward(create_graph=True)
    first = [p.grad for p in learnable(model).values()]
    for p in learnable(model).values():
        p.grad = None
    if (norm := squares(first)).requires_grad:
        norm.backward()
    return {"gradients": {n: frozen(p.grad) for n, p in zip(host_names(model), of_host(model), strict=True)}}


def input_penalty(model: nn.Module, x: Any) -> Record:
    """A gradient penalty on the input, as of a discriminator."""
    if not x.is_floating_point():
        return {}
    x = x.clone().requires_grad_()
    (slope,) = derivatives(loss_of(model(x)), [x], create_graph=True)
    return {"slope": frozen(slope), "second": collected(model, derivatives(squares([slope]), of_host(model)))}


HIGHER: Mapping[str, Program] = {
    "gradient norm": gradient_norm,
    "hessian product": hessian_product,
    "penalty in one backward": penalty_in_one_backward,
    "backward of backward": backward_of_backward,
    "input penalty": input_penalty,
}


def sharpness_aware(model: nn.Module, x: Any) -> Record:
    """Two backward passes in a step: at the host's weights, and where the loss rises from there (SAM)."""
    seen: Record = {}
    parameters = of_host(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for step in range(2):
        optimizer.zero_grad()
        loss_of(model(x)).backward()
        scale = 0.05 / (squares([p.grad for p in parameters]).sqrt() + 1e-12)
        moves = [None if p.grad is None else p.grad * scale for p in parameters]
        with torch.no_grad():
            for p, move in zip(parameters, moves, strict=True):
                p.add_(0.0 if move is None else move)
        optimizer.zero_grad()
        loss_of(model(x)).backward()
        with torch.no_grad():
            for p, move in zip(parameters, moves, strict=True):
                p.sub_(0.0 if move is None else move)
        seen[f"gradients {step}"] = collected(model, [p.grad for p in parameters])
        optimizer.step()
    return seen | {"weights": collected(model, list(parameters))}


def several_losses(model: nn.Module, x: Any) -> Record:
    """Two backward passes through one graph, and a third through another, accumulated."""
    loss = loss_of(model(x))
    loss.backward(retain_graph=True)
    (0.5 * loss).backward()
    loss_of(model(x)).backward()
    return {"gradients": collected(model, [p.grad for p in of_host(model)])}


def closure(model: nn.Module, x: Any) -> Record:
    """LBFGS calls the model several times in a step; of the host's parameters only."""
    optimizer = torch.optim.LBFGS(of_host(model), lr=0.1, max_iter=3)

    def evaluate() -> Tensor:
        model.zero_grad()
        loss = loss_of(model(x))
        loss.backward()
        return loss

    return {"loss": frozen(optimizer.step(evaluate)), "weights": collected(model, list(of_host(model)))}


FIRST: Mapping[str, Program] = {
    "sharpness aware": sharpness_aware,
    "several losses": several_losses,
    "closure": closure,
}
PROGRAMS = {**HIGHER, **FIRST}


def ran(program: Program, model: nn.Module, x: Any) -> Record:
    torch.manual_seed(2)
    return program(model, x)


class _Alias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, copy: bool) -> Tensor:
        return h.clone(memory_format=torch.preserve_format) if copy else h.view_as(h)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return g, None


@contextmanager
def aliases_for_seeds() -> Iterator[None]:
    """Germination writes an alias of the host's value, which nothing learns from.

    An alias is one more node of autograd, at which what comes back is added up first. Where an operation
    keeps its own result (tanh), second derivatives are sums in another order with it than without.
    """

    def alias(h: Tensor, s: Tensor, mode: str, objective: str, radius: float, copy: bool = False) -> Tensor:
        passed = _Alias.apply(h, copy)
        return operators._as_view(passed, h) if copy else passed

    kept = operators.isolated
    operators.isolated = alias
    try:
        yield
    finally:
        operators.isolated = kept


def model_of(plan: Plan) -> nn.Module:
    return plan.build().double()


def batch_of(plan: Plan) -> Tensor:
    return plan.batch(1, torch.float64)


def grown(plan: Plan, wanted: list[Any], **compiled: Any) -> tuple[fxgraft.Host, SeedManager]:
    torch.manual_seed(0)
    host = fxgraft.trace(model_of(plan), (batch_of(plan),))
    if compiled:
        host.compile(**compiled)
    manager = SeedManager(host)
    names = list(host.slots)
    for number, seed, mode, objective in wanted:
        manager.germinate(names[number % len(names)], FITTING[seed], mode=mode, objective=objective)
    return host, manager


def seeds(among: Any) -> st.SearchStrategy[list[Any]]:
    return st.lists(
        st.tuples(
            st.integers(0, 60),
            st.sampled_from(list(among)),
            st.sampled_from(["residual", "convex", "channelwise"]),
            st.sampled_from(["trust", "trust_step", "straight_through", "shadow"]),
        ),
        min_size=1,
        max_size=3,
    )


@given(plans(), seeds(FITTING), st.sampled_from(list(PROGRAMS)))
def test_training_seeds_are_in_no_derivative(plan: Plan, wanted: list[Any], name: str) -> None:
    x, program = batch_of(plan), PROGRAMS[name]
    plain = ran(program, model_of(plan), x)
    live = ran(program, grown(plan, wanted)[0], x)
    with aliases_for_seeds():
        aliased = ran(program, grown(plan, wanted)[0], x)
    assert_same_bits(live, aliased, name)
    if name in FIRST:
        assert_same_bits(live, plain, name)
    torch.testing.assert_close(live, plain, rtol=1e-7, atol=1e-9, equal_nan=True)


@given(plans(), seeds(CALM), st.sampled_from(list(HIGHER)), st.sampled_from([0.0, 0.3]))
def test_blending_seeds_are_in_no_derivative(plan: Plan, wanted: list[Any], name: str, alpha: float) -> None:
    """As if what they add were a constant; whatever other seeds still learn."""

    def blended() -> fxgraft.Host:
        host, manager = grown(plan, wanted)
        for seed in list(manager.seeds)[: len(wanted) // 2 + 1]:
            manager.blend(seed, to=alpha, steps=20)
            manager.step()
        return host

    x, program = batch_of(plan), PROGRAMS[name]
    live, reference = blended(), blended()
    found = ran(program, live, x)
    with engine.probing(reference, reference.structure, Phase.DETACHED):
        cut = ran(program, reference, x)
    torch.testing.assert_close(found, cut, rtol=1e-7, atol=1e-9, equal_nan=True)
    if all(mode != "convex" for _, _, mode, _ in wanted):
        assert_same_bits(found, cut, name)


@pytest.mark.parametrize("name", ["sharpness aware", "several losses"])
@pytest.mark.usefixtures("fresh_compiler")
def test_two_passes_in_a_step_compiled(name: str) -> None:
    plan = Plan(("in_place_module", "batch_norm", "many_consumers"))
    wanted = [
        (0, "drawing", "residual", "trust"),
        (1, "nan", "convex", "trust"),
        (4, "scale", "gated", "trust"),
    ]
    x, program = batch_of(plan), PROGRAMS[name]
    live = ran(program, grown(plan, wanted, backend="aot_eager")[0], x)
    assert_same_bits(live, ran(program, grown(plan, [], backend="aot_eager")[0], x), name)


@pytest.mark.parametrize("stage", ["TRAINING", "BLENDING"])
def test_through_activation_checkpointing(stage: str) -> None:
    """Which runs the forward once more inside of each backward pass."""

    def run(checkpointed: bool) -> Record:
        host, manager = grown(Plan(("linear", "many_consumers", "linear")), [(2, "scale", "gated", "trust")])
        if stage == "BLENDING":
            manager.blend(next(iter(manager.seeds)), to=0.5, steps=20)
            manager.step()
        call = partial(checkpoint, host, use_reentrant=False) if checkpointed else host
        x = batch_of(Plan(()))
        first = derivatives(loss_of(call(x)), list(learnable(host).values()), create_graph=True)
        return {"second": collected(host, derivatives(squares(first), of_host(host)))}

    torch.testing.assert_close(run(True), run(False), rtol=1e-12, atol=0)


@pytest.mark.parametrize("mode", ["residual", "convex"])
def test_blending_seeds_under_transforms_of_functions(mode: str) -> None:
    host, manager = grown(Plan(("linear", "relu", "linear")), [(2, "scale", mode, "trust")])
    manager.blend(next(iter(manager.seeds)), to=0.5, steps=20)
    manager.step()
    parameters, x = {n: p.detach() for n, p in learnable(host).items()}, batch_of(Plan(()))

    def loss(values: dict[str, Tensor]) -> Tensor:
        return loss_of(torch.func.functional_call(host, values, (x,)))

    def norm(values: dict[str, Tensor]) -> Tensor:
        return squares(list(torch.func.grad(loss)(values).values()))

    found = torch.func.grad(norm)(parameters)
    with engine.probing(host, host.structure, Phase.DETACHED):
        cut = torch.func.grad(norm)(parameters)
    names = host_names(host)
    assert any(cut[name].any() for name in names)
    torch.testing.assert_close([found[n] for n in names], [cut[n] for n in names], rtol=1e-12, atol=0)


@pytest.mark.parametrize("objective", ["trust", "trust_step", "straight_through"])
def test_hessian_products_of_all_parameters(objective: str) -> None:
    """What people write: ``create_graph`` over ``host.parameters()``, then once more."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    plain = copy.deepcopy(model)
    host = fxgraft.trace(model, (x,))
    manager = SeedManager(host)
    manager.germinate("1", "mlp", objective=objective)
    for p in manager.seed_parameters():
        nn.init.normal_(p)
    for run in (hessian_product, gradient_norm, penalty_in_one_backward):
        torch.testing.assert_close(run(host, x), run(plain, x), rtol=1e-10, atol=1e-12)
        host.zero_grad()
        plain.zero_grad()
    # The seed learns in the same pass.
    loss = loss_of(host(x))
    squares(derivatives(loss, list(learnable(host).values()), create_graph=True)).add(loss).backward()
    assert all(p.grad is not None and p.grad.any() for p in manager.seed_parameters())
