"""Optimizers that are not torch's own: right for seeds, or refused by name with what to do."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

import fxgraft
from fxgraft import SeedManager
from fxgraft.errors import BlueprintError, CheckpointError
from fxgraft.optimizers import _compatibility, _trial
from tests.harness import assert_same_bits, traced_once

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class SAM(Optimizer):
    """Foret et al., 2021, as mostly written: another optimizer inside, two passes, one norm over all."""

    def __init__(self, params: Any, base: type[Optimizer], rho: float = 0.05, **settings: Any):
        super().__init__(params, {"rho": rho, **settings})
        self.base_optimizer = base(self.param_groups, **settings)
        self.param_groups = self.base_optimizer.param_groups

    def _all(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

    @torch.no_grad()
    def first_step(self) -> None:
        norm = torch.stack([p.grad.norm() for p in self._all()]).norm()
        for p in self._all():
            self.state[p]["old"] = p.detach().clone()
            p.add_(p.grad * (self.param_groups[0]["rho"] / (norm + 1e-12)))

    @torch.no_grad()
    def second_step(self) -> None:
        for p in self._all():
            p.copy_(self.state[p]["old"])
        self.base_optimizer.step()

    def step(self, closure: Callable[[], Tensor] | None = None) -> None:  # type: ignore[override]
        assert closure is not None, "SAM needs a closure"
        self.first_step()
        torch.enable_grad()(closure)()
        self.second_step()


class Lookahead(Optimizer):
    """Zhang et al., 2019: each parameter for itself, with an optimizer inside that has a state of its own."""

    def __init__(self, base: Optimizer, every: int = 2):
        self.inner, self.every, self.count = base, every, 0
        super().__init__(base.param_groups, {})
        self.param_groups = base.param_groups

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.inner.step()
        self.count += 1
        with torch.no_grad():
            for p in (p for group in self.param_groups for p in group["params"]):
                slow = self.state[p].setdefault("slow", p.detach().clone())
                if self.count % self.every == 0:
                    slow.lerp_(p, 0.5)
                    p.copy_(slow)


class Signed(Optimizer):
    """By the sign of the gradient."""

    def __init__(self, params: Any, lr: float = 1e-3):
        super().__init__(params, {"lr": lr})
        self.noise = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad.sign(), alpha=group["lr"])


class Global(Signed):
    """As D-Adaptation and Prodigy: one step size that all gradients have a part in."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        share = 1 / (1 + sum(grad.square().sum() for grad in grads))
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad * share)


class Averaged(Signed):
    """By the number of parameters that it has."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        every = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for p in every:
            p.sub_(p.grad / len(every))


class MatricesAndOthers(Signed):
    """As several Muons have it: a flag of a group says which of two algorithms it has."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if group["use_muon"]:
                    assert p.ndim >= 2, "matrices only"
                if p.grad is not None:
                    p.sub_(p.grad, alpha=group["lr"])


class Elsewhere(Signed):
    """Keeps its moments in a dictionary of its own."""

    def __init__(self, params: Any, lr: float = 1e-3):
        super().__init__(params, lr)
        self.moments: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        for p in (p for group in self.param_groups for p in group["params"]):
            self.moments[p] = torch.zeros_like(p)


class Fixed(Signed):
    """Trains what it was made with."""

    def __init__(self, params: Any, lr: float = 1e-3):
        super().__init__(params, lr)
        self.mine = {id(p) for group in self.param_groups for p in group["params"]}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in (p for group in self.param_groups for p in group["params"] if id(p) in self.mine):
            p.sub_(p.grad)


class PassedOn(Signed):
    """Has what another one has."""

    def __init__(self, base: Optimizer):
        self.base = base

    @property
    def param_groups(self) -> Any:
        return self.base.param_groups

    @property
    def state(self) -> Any:
        return self.base.state


@traced_once
def host_of() -> fxgraft.Host:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 2))
    return fxgraft.trace(model, (X,))


def muon_groups(host: nn.Module) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in host.parameters() if p.dim() == 2], "use_muon": True},
        {"params": [p for p in host.parameters() if p.dim() < 2], "use_muon": False},
    ]


RIGHT: dict[str, Callable[[nn.Module], Optimizer]] = {
    "lookahead": lambda h: Lookahead(torch.optim.SGD(h.parameters(), 1e-2, momentum=0.9)),
    "signed": lambda h: Signed(h.parameters()),
    "by flags": lambda h: MatricesAndOthers(muon_groups(h), 1e-2),
    "a subclass of a known one": lambda h: type("Mine", (torch.optim.AdamW,), {})(h.parameters(), 1e-2),
    "named": lambda h: type("Named", (Signed,), {})(h.named_parameters()),
}
REFUSED: dict[str, tuple[Callable[[nn.Module], Optimizer], str]] = {
    "sam": (
        lambda h: SAM(h.parameters(), torch.optim.SGD, lr=1e-2, momentum=0.9),
        r"SAM was tried on stand-ins, and moves a parameter by the gradients of others too",
    ),
    "global": (lambda h: Global(h.parameters()), "Global was tried on stand-ins, and moves"),
    "averaged": (lambda h: Averaged(h.parameters()), "Averaged was tried on stand-ins, and moves"),
    "lbfgs": (lambda h: torch.optim.LBFGS(h.parameters()), "LBFGS takes one step along one direction"),
    "sparse": (lambda h: torch.optim.SparseAdam(h.parameters()), "SparseAdam takes sparse gradients"),
    "elsewhere": (lambda h: Elsewhere(h.parameters()), "keeps what belongs to it elsewhere than in"),
    "fixed": (lambda h: Fixed(h.parameters()), r"does not train it"),
    "passed on": (lambda h: PassedOn(torch.optim.SGD(h.parameters(), 0.1)), "give the manager that one in"),
}  # fmt: skip


def train(
    host: nn.Module, optimizers: list[Optimizer], manager: SeedManager | None, acts: Any
) -> list[Tensor]:
    """As one trains with SAM: the closure runs the model again. Returns what the host's weights were."""
    weights = []
    for step in range(6):
        if manager is not None and step in acts:
            acts[step](manager)

        def closure() -> Tensor:
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss = host(X).square().mean()
            loss.backward()
            return loss

        closure()
        for optimizer in optimizers:
            optimizer.step(closure) if isinstance(optimizer, SAM) else optimizer.step()
        if manager is not None:
            manager.step()
        weights.append(torch.cat([p.detach().flatten() for p in host.host_parameters()]))
    return weights


@pytest.mark.parametrize("kind", RIGHT)
def test_what_takes_each_parameter_for_itself_trains_seeds_that_the_host_does_not_feel(kind: str) -> None:
    plain = host_of()
    expected = train(plain, [RIGHT[kind](plain)], None, {})
    host = host_of()
    optimizer = RIGHT[kind](host)
    scheduler = lr_scheduler.ConstantLR(optimizer, 1.0) if kind == "signed" else None  # patches its step
    manager = SeedManager(host, optimizer, schedulers=[] if scheduler is None else [scheduler])
    before = torch.get_rng_state()
    refs: list[Any] = []

    def grow(manager: SeedManager) -> None:
        seed = manager.germinate("1", "mlp", name="a")
        refs.extend(weakref.ref(p) for p in seed.module.parameters())

    actual = train(host, [optimizer], manager, {1: grow, 4: lambda m: m.cull("a")})
    assert_same_bits(actual, expected, "the host's weights")
    assert torch.equal(torch.get_rng_state(), before)
    host.zero_grad()
    optimizer.zero_grad()
    assert [ref for ref in refs if ref() is not None] == []  # no state is left, inner state neither


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_is_refused_by_name(kind: str, wait: bool) -> None:
    host = host_of()
    build, message = REFUSED[kind]
    optimizer = build(host)
    groups = [dict(g, params=list(map(id, g["params"]))) for g in optimizer.param_groups]
    events: list[Any] = []
    manager = SeedManager(host, optimizer, sinks=[events.append])
    linear = nn.Linear(8, 8)
    if wait:
        with pytest.raises(
            BlueprintError, match=rf"seed .* cannot be trained: .*{message}.*torch.optim.AdamW"
        ):
            manager.germinate("1", linear)
    else:
        manager.germinate("1", linear, wait=False)
        manager._background.wait(10)
        manager.step()
        assert any(message.replace("\\", "") in str(event.data) for event in events), events
    assert not manager.seeds
    assert [dict(g, params=list(map(id, g["params"]))) for g in optimizer.param_groups] == groups
    assert not optimizer.state


@pytest.mark.parametrize("kind", ["sam", "global", "elsewhere"])
def test_the_remedy_works(kind: str) -> None:
    """An optimizer beside it, for seeds alone: the host trains to the bit as without them."""
    build = REFUSED[kind][0]
    plain = host_of()
    expected = train(plain, [build(plain)], None, {})
    host = host_of()
    optimizers = [build(host), torch.optim.AdamW([{"params": []}], lr=1e-3)]
    manager = SeedManager(host, optimizers, strict=True)
    kept = []

    def grow(manager: SeedManager) -> None:
        seed = manager.germinate("1", "mlp", name="a")
        kept.append({n: p.detach().clone() for n, p in seed.module.named_parameters()})

    def cull(manager: SeedManager) -> None:
        seed = manager.seeds["a"]
        assert not any(
            torch.equal(p, kept[0][n]) for n, p in seed.module.named_parameters() if n == "2.weight"
        )
        manager.cull("a")

    actual = train(host, optimizers, manager, {1: grow, 4: cull})
    assert_same_bits(actual, expected, "the host's weights")
    assert optimizers[1].param_groups[0]["params"] == []
    assert not optimizers[1].state


class Told(Lookahead):
    """Says what is inside."""

    def state_dict(self) -> Any:
        return {**super().state_dict(), "inner": self.inner.state_dict()}


def test_a_state_that_a_file_would_lack_is_not_left_out_silently(tmp_path: Path) -> None:
    for kind, is_whole in ((Lookahead, False), (Told, True)):
        host = host_of()
        optimizer = kind(torch.optim.SGD(host.parameters(), 1e-2, momentum=0.9))
        manager = SeedManager(host, optimizer)
        manager.save(tmp_path / "fresh")
        train(host, [optimizer], manager, {})
        if is_whole:
            manager.save(tmp_path / "run")
        else:
            with pytest.raises(CheckpointError, match=r"Lookahead.state_dict\(\) lacks the state of the SGD"):
                manager.save(tmp_path / "run")
            assert not (tmp_path / "run").exists()


def test_a_group_for_vectors_is_found_by_trial() -> None:
    host = host_of()
    optimizer = MatricesAndOthers(muon_groups(host)[::-1], 1e-2)
    seed = SeedManager(host, optimizer).germinate("0", lambda slot: nn.Linear(8, 8))
    flags = {
        name: next(g["use_muon"] for g in optimizer.param_groups if any(p is q for q in g["params"]))
        for name, p in seed.module.named_parameters()
    }
    assert flags == {"weight": True, "bias": False}


EVERY = (
    "SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "Rprop", "ASGD",
    "Adafactor", "Muon", "LBFGS", "SparseAdam",
)  # fmt: skip


@pytest.mark.parametrize("dims", [0, 1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("name", EVERY)
def test_what_is_said_of_torchs_own_is_what_a_trial_finds(name: str, dims: int, dtype: torch.dtype) -> None:
    optimizer = getattr(torch.optim, name)([nn.Parameter(torch.randn(8, 8))])
    group, parameter = optimizer.param_groups[0], nn.Parameter(torch.ones([8] * dims, dtype=dtype))
    state = len(optimizer.state)  # Adagrad has some at once
    known, tried = (
        _compatibility.why_incompatible(optimizer, group, parameter),
        _trial.why_not(optimizer, group, parameter),
    )
    assert (known is None) is (tried is None), (known, tried)
    assert len(optimizer.state) == state


def test_every_optimizer_of_torch_is_tried() -> None:
    found = {
        name
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
    }
    assert found == set(EVERY)
