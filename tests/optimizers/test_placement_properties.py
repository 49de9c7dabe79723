"""Random hosts whose parameters are divided at random: a seed's go where a simple rule of its own says.

The rule: the place of a slot is the part of the host that it is in, and a parameter goes to the group for its
kind of that place; where none there holds that kind, to any group of that place.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxgraft
from fxgraft import SeedManager
from fxgraft.optimizers.groups import OWNER

WIDTH = 4
LAYERS = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "without bias": lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    "norm": lambda: nn.LayerNorm(WIDTH),
    "activation": nn.Tanh,
}
DIVISIONS = {
    "together": {"matrix": "all", "vector": "all", "norm": "all"},
    "decay": {"matrix": "matrix", "vector": "flat", "norm": "flat"},
    "norms": {"matrix": "rest", "vector": "rest", "norm": "norm"},
    "kinds": {"matrix": "matrix", "vector": "vector", "norm": "norm"},
}
DECAYS = {"all": 0.1, "rest": 0.1, "matrix": 0.1, "flat": 0.01, "vector": 0.01, "norm": 0.001}


def kind_of(name: str, parameter: Tensor, model: nn.Module) -> str:
    if parameter.dim() == 2:
        return "matrix"
    return "norm" if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.LayerNorm) else "vector"


@dataclass(frozen=True)
class Host:
    """A model as data, and how its parameters are divided.

    Attributes:
        parts: of parts of layers; each of these has a linear layer with a bias, and may have others.
        fine: whether the inner parts are the places that groups are divided by, or the outer, or neither.
        division: of kinds.
        frozen: whether the matrices are.
        keep_empty: whether groups that hold nothing are kept.
        split: the groups that have an optimizer of their own: those of a place, of a kind, or all have one.
        order: shuffles groups and optimizers.
    """

    parts: tuple[tuple[tuple[str, ...], ...], ...]
    fine: str
    division: str
    frozen: bool
    keep_empty: bool
    split: str
    order: int

    def build(self) -> nn.Sequential:
        model = nn.Sequential(
            *(
                nn.Sequential(*(nn.Sequential(*(LAYERS[name]() for name in inner)) for inner in outer))
                for outer in self.parts
            )
        )
        for parameter in model.parameters():
            parameter.requires_grad_(not (self.frozen and parameter.dim() == 2))
        return model

    def place_of(self, path: str) -> str:
        """The place of what has this name: a layer, or a part, whose value is that of the last one in it."""
        if self.fine == "one":
            return ""
        outer, *more = path.split(".")
        if self.fine == "outer":
            return outer
        return f"{outer}.{more[0] if more else len(self.parts[int(outer)]) - 1}"

    def key(self, place: str, kind: str) -> str:
        return f"{place}|{DIVISIONS[self.division][kind]}"

    def optimizers(self, host: nn.Module) -> list[torch.optim.Optimizer]:
        groups: dict[str, dict[str, Any]] = {}
        places: list[str] = []
        for name, parameter in host.named_parameters():
            place = self.place_of(name)
            places += [place] if place not in places else []
            number = 1 + places.index(place)
            for kind in ("matrix", "vector", "norm"):  # empty ones as well
                key = self.key(place, kind)
                decay = DECAYS[DIVISIONS[self.division][kind]] * (1 + number / 64)
                settings = {"lr": number * 1e-3, "weight_decay": decay, "key": key}
                groups.setdefault(key, {"params": [], **settings})
            if parameter.requires_grad:
                groups[self.key(place, kind_of(name, parameter, host))]["params"].append(parameter)
        kept = [group for group in groups.values() if group["params"] or self.keep_empty]
        shuffled = [kept[i] for i in torch.randperm(len(kept), generator=self._generator()).tolist()]
        together: dict[str, list[dict[str, Any]]] = {}
        for group in shuffled:
            place, _, division = group["key"].partition("|")
            by = {"one": "", "place": place, "kind": division}[self.split]
            together.setdefault(by, []).append(group)
        return [torch.optim.SGD(several, 1.0, momentum=0.9) for several in together.values()]

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.order)

    def allowed(self, optimizers: list[torch.optim.Optimizer], slot: str, kind: str) -> set[str]:
        """The groups that a parameter of a seed may go to, by their keys."""
        place = self.place_of(slot)
        there = {g["key"]: g for o in optimizers for g in o.param_groups if g["key"].startswith(f"{place}|")}
        wanted = there.get(self.key(place, kind))
        if wanted is None:
            return set(there)
        if not wanted["params"]:  # a group that matrices would be in, were they not frozen, is known by that
            return {wanted["key"]} if kind == "matrix" and self.split != "kind" else set(there)
        model = self.build()
        kinds = {
            kind_of(name, parameter, model)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and self.key(self.place_of(name), kind) == wanted["key"]
        } & {
            known
            for known, division in DIVISIONS[self.division].items()
            if wanted["key"] == f"{place}|{division}"
        }
        return {wanted["key"]} if kind in kinds else set(there)


def hosts() -> st.SearchStrategy[Host]:
    layer = st.sampled_from(list(LAYERS))
    inner = st.tuples(st.lists(layer, max_size=2), st.lists(layer, max_size=2)).map(
        lambda around: (*around[0], "linear", *around[1])
    )
    outer = st.lists(inner, min_size=1, max_size=2).map(tuple)
    return st.builds(
        Host,
        parts=st.lists(outer, min_size=1, max_size=3).map(tuple),
        fine=st.sampled_from(["one", "outer", "inner"]),
        division=st.sampled_from(list(DIVISIONS)),
        frozen=st.booleans(),
        keep_empty=st.booleans(),
        split=st.sampled_from(["one", "place", "kind"]),
        order=st.integers(0, 99),
    )


def seed_module(slot: fxgraft.Slot) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH))


SEED_KINDS = {"0.weight": "norm", "0.bias": "norm", "1.weight": "matrix", "1.bias": "vector"}


def look(optimizers: list[torch.optim.Optimizer]) -> Any:
    groups = [[{**g, "params": [id(p) for p in g["params"]]} for g in o.param_groups] for o in optimizers]
    return copy.deepcopy((groups, [{id(p) for p in o.state} for o in optimizers]))


@given(hosts(), st.lists(st.tuples(st.integers(0, 99), st.booleans()), min_size=1, max_size=3))
def test_each_parameter_goes_to_the_group_of_its_place_and_kind(plan: Host, wanted: Any) -> None:
    x = torch.randn(3, WIDTH)
    host = fxgraft.trace(plan.build(), (x,))
    optimizers = plan.optimizers(host)
    manager = SeedManager(host, optimizers)
    expected = [plan.allowed(optimizers, slot, kind) for slot in host.slots for kind in SEED_KINDS.values()]
    assert all(expected)

    def step() -> None:
        host(x).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        manager.step()

    step()
    before, seeds = look(optimizers), []
    decays = {g["weight_decay"]: g["key"] for o in optimizers for g in o.param_groups}
    rules = {
        slot: {name: plan.allowed(optimizers, slot, kind) for name, kind in SEED_KINDS.items()}
        for slot in host.slots
    }
    for number, own in wanted:
        slot = list(host.slots)[number % len(host.slots)]
        seed = manager.germinate(slot, seed_module, hyper={"lr": 0.5} if own else None)
        seeds.append(seed)
        for name, parameter in seed.module.named_parameters():
            (group,) = [
                g for o in optimizers for g in o.param_groups if any(p is parameter for p in g["params"])
            ]
            assert (OWNER in group) is own
            assert decays[group["weight_decay"]] in rules[slot][name], (slot, name)
            assert group["lr"] == 0.5 or not own
    step()
    for seed in seeds:
        manager.cull(seed)
    assert look(optimizers) == before
