"""The branch of the same form as the layers beside it: what `widen` would add, and what `fuse` makes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from transformers import LlamaConfig, LlamaForCausalLM

import fxgraft
from fxgraft import SeedManager, blueprints
from fxgraft.errors import BlueprintError
from fxgraft.util.bits import same_bits
from tests.harness import assert_same_bits, frozen

IDS = torch.arange(12).reshape(2, 6)


class Two(nn.Module):
    """Two layers with something between them, beside a residual connection."""

    def __init__(self, up: nn.Module, between: Callable[[Tensor], Tensor], down: nn.Module, width: int):
        super().__init__()
        self.enter = nn.Linear(width, width) if isinstance(up, nn.Linear) else nn.Conv2d(width, width, 1)
        self.up, self.between, self.down = up, between, down

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return x + self.down(self.between(self.up(x)))


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.gate = nn.Linear(4, 4), nn.Linear(4, 6, bias=False)
        self.up, self.down = nn.Linear(4, 6, bias=False), nn.Linear(6, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


def llama() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=24, **sizes))


def conv(**options: Any) -> nn.Module:
    between = nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.ReLU())
    return Two(nn.Conv2d(3, 6, 3, padding=1), between, nn.Conv2d(6, 3, 3, padding=1), 3)


FLAT, IMAGE = torch.randn(5, 4), torch.randn(4, 3, 5, 5)
FORMS: dict[str, tuple[Callable[[], nn.Module], Tensor, str, str, str]] = {
    # model, example, slot, source, group of channels
    "sequential": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), FLAT, "2", "@input", "0",
    ),
    "a function between": (
        lambda: Two(nn.Linear(4, 6), F.gelu, nn.Linear(6, 4), 4), FLAT, "down", "enter", "up",
    ),
    "dropout": (
        lambda: Two(nn.Linear(4, 6), nn.Sequential(nn.Tanh(), nn.Dropout(0.2)), nn.Linear(6, 4), 4),
        FLAT, "down", "enter", "up",
    ),
    "a gate": (Gate, FLAT, "down", "enter", "gate"),
    "convolutions": (conv, IMAGE, "down", "enter", "up"),
    "strides": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 2, 2)),
        IMAGE, "2", "@input", "0",
    ),
    "Llama": (
        llama, IDS, "model.layers.0.mlp.down_proj", "model.layers.0.mlp@x", "model.layers.0.mlp.gate_proj",
    ),
}  # fmt: skip


class Run:
    def __init__(self, name: str, optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW):
        make, self.x, self.slot, self.source, self.group = FORMS[name]
        torch.manual_seed(0)
        self.host = fxgraft.trace(make(), (self.x,))
        self.optimizer = optimizer(self.host.parameters(), lr=1e-2)
        self.manager = SeedManager(self.host, self.optimizer)

    def out(self) -> Tensor:
        out = self.host(self.x)
        return out if isinstance(out, Tensor) else out.logits

    def now(self) -> Tensor:
        self.host.eval()
        try:
            with torch.no_grad():
                return self.out()
        finally:
            self.host.train()

    def train(self, steps: int) -> None:
        torch.manual_seed(1)
        for _ in range(steps):
            self.optimizer.zero_grad()
            (self.out() - 1).square().mean().backward()
            self.optimizer.step()
            self.manager.step()


@pytest.mark.parametrize("channels", [None, 2, 9])
@pytest.mark.parametrize("name", FORMS)
def test_it_is_what_widen_would_add(name: str, channels: int | None) -> None:
    run = Run(name)
    before, size = run.now(), run.host.channels[run.group].size
    config = {} if channels is None else {"channels": channels}
    seed = run.manager.germinate(run.slot, "parallel", source=run.source, isolated=False, **config)
    run.manager.blend(seed, steps=0)
    assert same_bits(run.now(), before), "it adds nothing at first"
    run.train(3)
    assert not same_bits(run.now(), before)
    run.manager.fossilize(seed)
    grown = run.now()
    assert run.manager.fuse(seed) == {seed.name: run.group}
    torch.testing.assert_close(run.now(), grown, rtol=1e-4, atol=1e-5)
    assert run.host.channels[run.group].size == size + (size if channels is None else channels)
    by_widen = Run(name)
    by_widen.manager.widen(run.group, size if channels is None else channels)
    shapes = {key: tensor.shape for key, tensor in by_widen.host.state_dict().items()}
    assert {key: tensor.shape for key, tensor in run.host.state_dict().items()} == shapes
    run.train(1)


@pytest.mark.parametrize("name", FORMS)
def test_it_learns_in_isolation_and_the_host_stays_to_the_bit(name: str) -> None:
    plain, run = Run(name), Run(name)
    seed = run.manager.germinate(run.slot, "parallel", source=run.source)
    assert seed.module is not None
    before = frozen(dict(seed.module.named_parameters()))
    plain.train(3)
    run.train(3)
    own = {key: tensor for key, tensor in run.host.state_dict().items() if key in plain.host.state_dict()}
    assert_same_bits(plain.host.state_dict(), own, "weights")
    assert any(not torch.equal(p, before[key]) for key, p in seed.module.named_parameters())


def test_its_cost_is_told_without_memory_or_random_numbers() -> None:
    run = Run("a gate")
    slot, state = run.host.site(run.slot, run.source), torch.get_rng_state()
    cost = blueprints.get("parallel").cost(slot, channels=5)
    assert torch.equal(state, torch.get_rng_state())
    assert (cost.parameters, cost.flops) == (3 * 4 * 5, 2 * 5 * 3 * 4 * 5)
    weights = frozen(run.host.state_dict())
    blueprints.get("parallel").build(slot)
    assert_same_bits(weights, run.host.state_dict(), "the host's weights")


def test_two_with_one_key_are_alike_and_with_two_are_not() -> None:
    def weights(name: str) -> Any:
        run = Run("sequential")
        seed = run.manager.germinate("2", "parallel", source="@input", name=name)
        assert seed.module is not None
        return frozen(seed.module.state_dict())

    assert_same_bits(weights("a"), weights("a"), "weights")
    assert not torch.equal(weights("a")["0.weight"], weights("b")["0.weight"])


def test_it_is_saved_and_loaded_and_continues_as_it_would_have(tmp_path: Any) -> None:
    def begun() -> Run:
        run = Run("convolutions")
        run.manager.germinate("down", "parallel", source="enter", name="a", channels=2)
        run.train(2)
        run.manager.blend("a", steps=4)
        run.train(2)
        return run

    run = begun()
    run.manager.save(tmp_path / "run")
    run.train(4)
    other = Run("convolutions")
    other.manager = SeedManager.load(tmp_path / "run", other.host, other.optimizer)
    other.train(4)
    assert_same_bits(run.host.state_dict(), other.host.state_dict(), "weights")


def test_a_wider_host_has_wider_branches() -> None:
    run = Run("sequential")
    run.manager.widen("0", 3)
    seed = run.manager.germinate("2", "parallel", source="@input")
    assert seed.module is not None
    assert seed.module.get_submodule("0").out_features == 9


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.up, self.norm = nn.Linear(4, 4), nn.Linear(4, 6), nn.LayerNorm(6)
        self.mid, self.down = nn.Linear(6, 6), nn.Linear(6, 4)
        self.slope = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        hidden = self.norm(self.up(x))
        out = self.down(hidden)
        return out + x + self.down(torch.relu(self.mid(hidden)) * self.slope)


def part(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(4, 4), *layers)


@pytest.mark.parametrize(
    ("make", "slot", "source", "said"),
    [
        (part(nn.Linear(4, 2)), "1", None, "expected a source"),
        (part(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 4)), "3", "0", "a norm is computed over it"),
        (part(nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 4)), "3", "0", "one group.*can grow.*can grow"),
        (part(nn.Linear(4, 4)), "1", "0", "one group of channels between the layers; got none"),
        (part(nn.Linear(4, 3), nn.PReLU(), nn.Linear(3, 4)), "3", "0", "'2.weight' belongs to all"),
        (part(weight_norm(nn.Linear(4, 3)), nn.Linear(3, 4)), "2", "0", "'1' has some"),
        (Norm, "down", "enter", "values that .* reads as well"),
        (Norm, "down_1", "up", "reads 'slope', too"),
        (Gate, "add", "enter", "only add something, as that of 'down'"),
        (part(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 4), nn.Tanh()), "4", "0", "as that of '3'"),
    ],
)
def test_what_has_no_such_branch_is_refused_by_name(
    make: Callable[[], nn.Module], slot: str, source: str | None, said: str
) -> None:
    host = fxgraft.trace(make(), (FLAT,))
    manager = SeedManager(host, torch.optim.SGD(host.parameters(), lr=0.1))
    with pytest.raises(BlueprintError, match=f"parallel at slot '{slot}', source .*{said}"):
        manager.germinate(slot, "parallel", source=source)
    assert not manager.seeds


@pytest.mark.parametrize("channels", [0, -1, 2.0, True])
def test_a_number_of_channels_that_is_none_is_refused(channels: Any) -> None:
    run = Run("sequential")
    with pytest.raises(BlueprintError, match="channels: expected a positive whole number"):
        run.manager.germinate("2", "parallel", source="@input", channels=channels)


def named(up: str, between: str) -> Callable[[], nn.Module]:
    """Layers of these names."""

    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.down = nn.Linear(4, 4), nn.Linear(4, 4)
            for name, layer in ((up, nn.Linear(4, 4)), (between, nn.Tanh())):
                parent, _, own = name.rpartition(".")
                if parent:
                    self.add_module(parent, nn.Module())
                self.get_submodule(parent).add_module(own, layer)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.down(self.get_submodule(between)(self.get_submodule(up)(self.enter(x))))
            return out

    return Layers


@pytest.mark.parametrize(
    ("up", "between"),
    [("a_b", "a.b"), ("append", "act"), ("code", "code_layer"), ("graph.up", "act"), ("recompile", "a.b")],
)
def test_layers_may_have_any_names(up: str, between: str) -> None:
    host = fxgraft.trace(named(up, between)(), (FLAT,))
    manager = SeedManager(host, torch.optim.SGD(host.parameters(), lr=0.1))
    seed = manager.germinate("down", "parallel", source="enter", channels=2, isolated=False)
    manager.blend(seed, steps=0)
    host(FLAT).square().sum().backward()
    manager.optimizers[0].step()
    manager.step()
    manager.fossilize(seed)
    before = host(FLAT)
    assert manager.fuse(seed) == {seed.name: up}
    torch.testing.assert_close(host(FLAT), before, rtol=1e-4, atol=1e-5)


def test_what_reshapes_the_last_layer_s_value_may_follow_it() -> None:
    host = fxgraft.trace(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4), nn.Flatten()), (FLAT,))
    manager = SeedManager(host, torch.optim.SGD(host.parameters(), lr=0.1))
    manager.germinate("3", "parallel", source="@input")


def test_a_command_for_too_many_channels_is_refused_before_any_is_made() -> None:
    run = Run("a gate")
    config = {"channels": 10**8}
    reply = run.manager.handle(
        {"type": "SEED", "slot": run.slot, "blueprint": "parallel", "source": run.source, "config": config}
    )
    assert reply.refused
    assert "the seed would have 1,200,000,000 parameters; a command may ask for" in reply.reason


def test_a_command_inside_of_a_larger_change_is_told_that_it_is_planned() -> None:
    run = Run("sequential")
    seed = run.manager.germinate(run.slot, "parallel", source=run.source, isolated=False)
    run.manager.blend(seed, steps=0)
    run.train(1)
    with run.manager.together():
        run.manager.fossilize(seed)
        reply = run.manager.handle({"type": "FUSE", "seed": seed.name})
        assert (reply.accepted, reply.reason) == (True, "is fused when the change is made")
    assert not run.manager.seeds
