"""A seed's parameters go where those of the layers around its slot are, by their kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft import SeedManager
from fxgraft.optimizers.groups import OWNER
from tests.harness import assert_same_bits, traced_once

X = torch.randn(4, 8)


def norm_first(slot: fxgraft.Slot) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(slot.shape[-1]), nn.Linear(slot.shape[-1], slot.shape[-1]))


def where(optimizers: Iterable[torch.optim.Optimizer], seed: fxgraft.Seed) -> dict[str, tuple[int, int]]:
    """Parameter -> the numbers of its optimizer and of its group there."""
    assert seed.module is not None
    found = {}
    for name, parameter in seed.module.named_parameters():
        (found[name],) = [
            (i, k)
            for i, optimizer in enumerate(optimizers)
            for k, group in enumerate(optimizer.param_groups)
            if any(p is parameter for p in group["params"])
        ]
    return found


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        self.critic = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 1, bias=False))

    def forward(self, x: Tensor) -> Any:
        return self.actor(x), self.critic(x)


@pytest.mark.parametrize("order", ["actor first", "critic first"])
@pytest.mark.parametrize("hyper", [None, {"lr": 1e-3}])
def test_an_actor_and_a_critic_each_keep_their_own(order: str, hyper: dict[str, float] | None) -> None:
    host = fxgraft.trace(ActorCritic(), (X,))
    parts = [host.actor, host.critic] if order == "actor first" else [host.critic, host.actor]
    optimizers = [torch.optim.AdamW(part.parameters(), 1e-3) for part in parts]
    manager = SeedManager(host, optimizers)
    for slot, part in (("actor.2", host.actor), ("critic.1", host.critic), ("critic.0", host.critic)):
        seed = manager.germinate(slot, norm_first, hyper=hyper)
        number = next(i for i, known in enumerate(parts) if known is part)
        assert {i for i, _ in where(optimizers, seed).values()} == {number}, slot


class Headed(nn.Module):
    """A body with norms, and a head of one matrix."""

    def __init__(self, head_bias: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 8))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 8, bias=head_bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.head(self.norm(self.body(self.embedding(x)))))


TOKENS = torch.tensor([[1, 2], [3, 4]])


@traced_once
def headed(head_bias: bool = False) -> fxgraft.Host:
    return fxgraft.trace(Headed(head_bias), (TOKENS,))


def body_and_head(host: nn.Module) -> list[dict[str, Any]]:
    head = list(host.head.parameters())
    return [
        {"params": [p for p in host.parameters() if all(p is not h for h in head)], "lr": 1e-5},
        {"params": head, "lr": 1e-2},
    ]


def by_decay(groups: list[dict[str, Any]], empty: bool = True) -> list[dict[str, Any]]:
    """Each group in two, its matrices decayed and its vectors not; with the empty ones or without."""
    split = [
        {**group, "params": [p for p in group["params"] if (p.dim() >= 2) is decayed], "weight_decay": decay}
        for group in groups
        for decayed, decay in ((True, 0.1), (False, 0.0))
    ]
    return [group for group in split if empty or group["params"]]


BODY, HEAD = 1e-5, 1e-2
PLACES = dict.fromkeys(("embedding", "body.0", "body.2", "body.3", "norm"), BODY) | dict.fromkeys(
    ("head", "tanh"), HEAD
)


@pytest.mark.parametrize("slot", PLACES)
@pytest.mark.parametrize("head_bias", [True, False])
@pytest.mark.parametrize("division", ["places", "places and kinds", "places and kinds, none empty"])
def test_a_seed_has_the_learning_rate_of_the_layers_around_it(
    slot: str, head_bias: bool, division: str
) -> None:
    host = headed(head_bias)
    groups = body_and_head(host)
    if division != "places":
        groups = by_decay(groups, empty="none" not in division)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.1)
    seed = SeedManager(host, optimizer).germinate(slot, norm_first)
    for name, (_, place) in where([optimizer], seed).items():
        group = optimizer.param_groups[place]
        assert group["lr"] == PLACES[slot], name
        if division == "places and kinds":
            assert group["weight_decay"] == (0.1 if name == "1.weight" else 0.0), name


def test_an_empty_group_takes_the_kind_that_the_others_do_not_hold() -> None:
    """All matrices of the host are frozen: those of a seed are decayed all the same."""
    host = headed(True)
    flat = [p for p in host.parameters() if p.dim() < 2]
    for empty_first in (True, False):
        groups = [{"params": [], "weight_decay": 0.1}, {"params": flat, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups if empty_first else groups[::-1], 1e-3)
        manager = SeedManager(host, optimizer)
        seeds = [manager.germinate("body.2", norm_first) for _ in range(2)]  # the group is not empty then
        for seed in seeds:
            decays = {
                n: optimizer.param_groups[k]["weight_decay"] for n, (_, k) in where([optimizer], seed).items()
            }
            assert decays == {"0.weight": 0.0, "0.bias": 0.0, "1.weight": 0.1, "1.bias": 0.0}
        for seed in seeds:
            manager.cull(seed)
        assert [len(g["params"]) for g in optimizer.param_groups] == ([0, 7] if empty_first else [7, 0])


def test_groups_by_kinds_alone_are_kept_by_kinds_whatever_their_rates() -> None:
    """Of maximal update parametrisation: matrices have another learning rate than vectors."""
    host = headed()
    groups = by_decay([{"params": list(host.parameters())}])
    groups[0]["lr"], groups[1]["lr"] = 1e-4, 1e-2
    optimizer = torch.optim.AdamW(groups)
    for slot in PLACES:
        seed = SeedManager(host, optimizer).germinate(slot, norm_first)
        rates = {n: optimizer.param_groups[k]["lr"] for n, (_, k) in where([optimizer], seed).items()}
        assert rates == {"0.weight": 1e-2, "0.bias": 1e-2, "1.weight": 1e-4, "1.bias": 1e-2}, slot
        host.clear()


def test_hyper_makes_a_group_for_each_group_that_is_joined() -> None:
    """Matrices keep their weight decay, norms have none, though a norm comes first."""
    host = headed()
    optimizer = torch.optim.AdamW(by_decay(body_and_head(host)), 1e-3)
    before = [dict(group, params=len(group["params"])) for group in optimizer.param_groups]
    manager = SeedManager(host, optimizer)
    seed = manager.germinate("body.2", norm_first, hyper={"lr": 1e-4})
    own = [group for group in optimizer.param_groups if OWNER in group]
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in own] == [(1e-4, 0.0, 3), (1e-4, 0.1, 1)]
    manager.cull(seed)
    assert [dict(group, params=len(group["params"])) for group in optimizer.param_groups] == before


def test_matrices_for_one_optimizer_and_the_rest_for_another() -> None:
    host = headed()
    hidden = [host.body[0].weight, host.body[3].weight]
    rest = [p for p in host.parameters() if all(p is not h for h in hidden)]
    optimizers = [torch.optim.Muon(hidden, 1e-3), torch.optim.AdamW(rest, 1e-3)]
    manager = SeedManager(host, optimizers)
    assert {n: i for n, (i, _) in where(optimizers, manager.germinate("body.2", norm_first)).items()} == {
        "0.weight": 1, "0.bias": 1, "1.weight": 0, "1.bias": 1
    }  # fmt: skip
    assert {i for i, _ in where(optimizers, manager.germinate("head", norm_first)).values()} == {1}


def test_groups_that_somebody_else_adds_or_loads_are_seen() -> None:
    host = headed()
    first, second = body_and_head(host)
    optimizer = torch.optim.AdamW([first])
    manager = SeedManager(host, optimizer)
    assert set(where([optimizer], manager.germinate("head", norm_first)).values()) == {(0, 0)}
    optimizer.add_param_group(second)
    assert set(where([optimizer], manager.germinate("head", norm_first)).values()) == {(0, 1)}
    optimizer.load_state_dict(optimizer.state_dict())
    assert set(where([optimizer], manager.germinate("tanh", norm_first)).values()) == {(0, 1)}
    host.load_state_dict({k: v.clone() for k, v in host.state_dict().items()}, assign=True)
    assert set(where([optimizer], manager.germinate("norm", norm_first)).values()) == {(0, 0)}


OTHERS: dict[str, Callable[[nn.Module], Any]] = {
    "nothing that is trained": lambda host: [torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1)],
    "an empty group for seeds alone": lambda host: [torch.optim.SGD([{"params": []}], 0.1)],
}


@pytest.mark.parametrize("kind", OTHERS)
def test_an_optimizer_without_any_parameter_of_the_host_takes_seeds(kind: str) -> None:
    host = headed()
    optimizers = OTHERS[kind](host)
    seed = SeedManager(host, optimizers).germinate("head", norm_first)
    assert set(where(optimizers, seed).values()) == {(0, 0)}


# What is asked for


def sgd_and_adamw(host: nn.Module) -> list[torch.optim.Optimizer]:
    first, second = body_and_head(host)
    return [
        torch.optim.SGD(by_decay([first]), 1e-3, momentum=0.9),
        torch.optim.AdamW([{**second, "params": list(second["params"])}], 1e-3),
    ]


ASKED: dict[
    str, tuple[Callable[[list[torch.optim.Optimizer]], dict[str, Any]], dict[str, tuple[int, int]]]
] = {
    "an optimizer": (
        lambda o: {"optimizer": o[0]},
        {"0.weight": (0, 1), "0.bias": (0, 1), "1.weight": (0, 0), "1.bias": (0, 1)},
    ),
    "its number": (
        lambda o: {"optimizer": 1},
        dict.fromkeys(("0.weight", "0.bias", "1.weight", "1.bias"), (1, 0)),
    ),
    "a group": (
        lambda o: {"groups": o[0].param_groups[1]},
        dict.fromkeys(("0.weight", "0.bias", "1.weight", "1.bias"), (0, 1)),
    ),
    "its place": (
        lambda o: {"groups": 0, "optimizer": 0},
        dict.fromkeys(("0.weight", "0.bias", "1.weight", "1.bias"), (0, 0)),
    ),
    "a function": (
        lambda o: {"groups": lambda name, p: o[0].param_groups[0] if name.startswith("1.") else None},
        {"0.weight": (1, 0), "0.bias": (1, 0), "1.weight": (0, 0), "1.bias": (0, 0)},
    ),
    "a function of places": (
        lambda o: {"groups": lambda name, p: p.dim() % 2, "optimizer": o[0]},
        {"0.weight": (0, 1), "0.bias": (0, 1), "1.weight": (0, 0), "1.bias": (0, 1)},
    ),
}


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("asked", ASKED)
def test_what_is_asked_for_is_done_and_planned(asked: str, wait: bool) -> None:
    host = headed()
    optimizers = sgd_and_adamw(host)
    manager = SeedManager(host, optimizers)
    options, expected = ASKED[asked][0](optimizers), ASKED[asked][1]
    plan = manager.plan("head", norm_first, **options)
    seed = manager.germinate("head", norm_first, wait=wait, **options)
    if not wait:
        manager._background.wait(10)
        manager.step()
    assert where(optimizers, seed) == expected
    assert {name: (d.optimizer, d.group) for name, d in plan.groups.items()} == expected
    assert seed.places == expected
    manager.cull(seed)
    assert [[len(g["params"]) for g in o.param_groups] for o in optimizers] == [[3, 6], [1]]


def test_a_plan_says_where_each_parameter_would_go() -> None:
    host = headed()
    manager = SeedManager(host, torch.optim.AdamW(by_decay(body_and_head(host)), 1e-3))
    plan = manager.plan("norm", norm_first, name="a")
    printed = " ".join(str(plan).split())  # long cells go on in the line below
    assert (
        "_seeds.a.module.1.weight (8, 8) group 0 of optimizer 0 (AdamW), lr 1e-05, weight_decay 0.1"
        in printed
    )
    own = manager.plan("norm", norm_first, name="a", hyper={"lr": 1e-3})
    told = own.to_dict()["groups"]["0.bias"]
    assert told == {
        "optimizer": 0, "kind": "AdamW", "group": 1, "own": True, "lr": 1e-3, "weight_decay": 0.0
    }  # fmt: skip
    printed = " ".join(str(own).split())
    assert "its own, like group 1 of optimizer 0 (AdamW), lr 0.001, weight_decay 0" in printed
    assert SeedManager(headed()).plan("norm", norm_first).groups == {}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an optimizer that is not the manager's": (
        {"optimizer": torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)},
        r"optimizer: expected one of those that the manager .* number \(0: SGD, 1: AdamW\); got SGD",
    ),
    "a number too large": ({"optimizer": 2}, "optimizer: expected one of those .* got 2"),
    "true": ({"optimizer": True}, "optimizer: expected"),
    "a place of which optimizer": (
        {"groups": 0},
        r"groups: 0 is a group of which optimizer\? Expected optimizer=",
    ),
    "a place that is not there": (
        {"groups": 2, "optimizer": 0},
        r"groups: expected the place of a group.*SGD has 2",
    ),
    "a group that is not there": ({"groups": {"params": []}}, "groups: expected the place of a group"),
    "text": ({"groups": "decay"}, "groups: expected the place of a group"),
    "what a function gives": (
        {"groups": lambda name, p: 7, "optimizer": 0},
        "groups: expected the place.* got 7",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_not_there_is_refused(what: str) -> None:
    host = headed()
    optimizers = sgd_and_adamw(host)
    manager = SeedManager(host, optimizers)
    options, message = WRONG[what]
    for ask in (manager.germinate, manager.plan):
        with pytest.raises(ValueError, match=message):
            ask("head", norm_first, **options)
    assert not manager.seeds
    assert [[len(g["params"]) for g in o.param_groups] for o in optimizers] == [[3, 6], [1]]
    assert manager.germinate("head", norm_first).is_live


def test_a_group_of_a_seeds_own_is_no_place_for_another() -> None:
    host = headed()
    optimizer = torch.optim.AdamW(host.parameters(), 1e-3)
    manager = SeedManager(host, optimizer)
    manager.germinate("head", norm_first, name="a", hyper={"lr": 1.0})
    with pytest.raises(ValueError, match="expected a group that stays; that one is of seed 'a'"):
        manager.germinate("head", norm_first, groups=1)


def test_a_group_that_cannot_train_a_parameter_is_not_forced() -> None:
    host = headed()
    matrices = [p for p in host.parameters() if p.dim() == 2]
    rest = [p for p in host.parameters() if p.dim() != 2]
    manager = SeedManager(host, [torch.optim.Muon(matrices, 1e-3), torch.optim.SGD(rest, 1e-3)])
    for asked in ({"optimizer": 0}, {"groups": 0, "optimizer": 0}):
        with pytest.raises(
            fxgraft.errors.BlueprintError, match=r"0\.weight cannot be trained: Muon takes matrices"
        ):
            manager.germinate("head", norm_first, **asked)


def test_without_an_optimizer_nothing_can_be_asked_for() -> None:
    manager = SeedManager(headed())
    for asked in ({"optimizer": 0}, {"groups": 0}, {"hyper": {}}):
        with pytest.raises(
            ValueError, match="expected an optimizer to train the seed by; the manager has none"
        ):
            manager.germinate("head", norm_first, **asked)


@pytest.mark.parametrize("hyper", [None, {"lr": 2e-3}])
@pytest.mark.parametrize("asked", ASKED)
def test_a_resumed_run_goes_on_bit_for_bit_where_it_was(asked: str, hyper: Any, tmp_path: Path) -> None:
    def world() -> tuple[fxgraft.Host, list[torch.optim.Optimizer]]:
        torch.manual_seed(0)
        host = headed()
        return host, sgd_and_adamw(host)

    def train(host: fxgraft.Host, optimizers: list[torch.optim.Optimizer], manager: SeedManager) -> None:
        for _ in range(3):
            host(TOKENS).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            manager.step()

    host, optimizers = world()
    manager = SeedManager(host, optimizers)
    options = ASKED[asked][0](optimizers)
    manager.germinate("head", norm_first, name="a", hyper=hyper, **options)
    manager.germinate("body.2", norm_first, name="b", hyper=hyper)
    train(host, optimizers, manager)
    manager.save(tmp_path / "run")
    train(host, optimizers, manager)

    twin, others = world()
    factories = {"a": norm_first, "b": norm_first}
    again = SeedManager.load(tmp_path / "run", twin, others, blueprints=factories)
    assert [s.places for s in again.seeds.values()] == [s.places for s in manager.seeds.values()]
    train(twin, others, again)
    assert_same_bits(dict(twin.state_dict()), dict(host.state_dict()), "resumed and whole")
    for ours, theirs in zip(others, optimizers, strict=True):
        assert_same_bits(ours.state_dict()["state"], theirs.state_dict()["state"], "moments")
        assert [{**g, "params": 0} for g in ours.param_groups] == [
            {**g, "params": 0} for g in theirs.param_groups
        ]
    for name in ("a", "b"):
        again.cull(name)
    assert [[len(g["params"]) for g in o.param_groups] for o in others] == [[3, 6], [1]]


def grouped(slot: fxgraft.Slot, *, groups: int = 1) -> nn.Module:
    assert groups in (1, 2)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(groups)))


def test_a_number_of_groups_is_for_the_blueprint_that_has_such_an_option() -> None:
    host = headed()
    optimizer = torch.optim.AdamW(by_decay([{"params": list(host.parameters())}]), 1e-3)
    manager = SeedManager(host, optimizer)
    seed = manager.germinate("head", grouped, groups=2)
    assert (dict(seed.config), len(seed.module)) == ({"groups": 2}, 2)
    assert seed.places == {"0.weight": (0, 0), "0.bias": (0, 1), "1.weight": (0, 0), "1.bias": (0, 1)}
    seed = manager.germinate("head", grouped, groups=optimizer.param_groups[1])
    assert set(seed.places.values()) == {(0, 1)}
    told = {"type": "SEED", "slot": "head", "blueprint": "norm", "name": "told", "config": {"groups": 1}}
    assert manager.handle(told).accepted
    assert manager.seeds["told"].config == {"groups": 1}
    reply = manager.handle({**told, "blueprint": "mlp", "name": "other"})
    assert reply.refused
    assert "config: groups cannot be set by a command" in reply.reason
