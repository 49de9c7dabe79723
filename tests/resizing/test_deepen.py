"""``manager.deepen``: further blocks in a stack; the function is kept to the bit where it is asked for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft import Stage
from fxgraft.errors import BlueprintError, SlotError, StageError
from fxgraft.host import engine
from fxgraft.optimizers.gradients import SeedGradients
from fxgraft.optimizers.registry import SeedParameterRegistry
from fxgraft.resizing import new_blocks
from tests.harness import assert_same_bits, snapshot
from tests.resizing.deep_models import (
    IDS,
    MODELS,
    CharGPT,
    Given,
    Run,
    TransformerBlock,
    assert_kept,
    value_of,
)
from tests.resizing.test_stacks import Loop, Tuples, X

CHAR = MODELS["char"]
FOUR = Given(CharGPT, 4, "blocks", (IDS,), {})
TWO = Given(CharGPT, 2, "blocks", (IDS,), {})


@pytest.mark.parametrize("given", [CHAR, MODELS["resnet"]], ids=["char", "resnet"])
def test_a_copied_block_computes_what_its_equal_does(given: Given) -> None:
    run = Run(given)
    run.train(1)
    run.deepened(at=[0], init="copy")
    by_hand = given.model(1)
    names = {0: 0, 1: 0} | {i + 1: i for i in range(1, given.layers)}
    state = run.host.model_state()
    wanted = {}
    for key in by_hand.state_dict():
        number, _, rest = key.removeprefix(f"{given.stack}.").partition(".")
        is_inside = key.startswith(f"{given.stack}.")
        wanted[key] = state[f"{given.stack}.{names[int(number)]}.{rest}" if is_inside else key]
    by_hand.load_state_dict(wanted)
    assert_same_bits(given.run(run.host), given.run(by_hand))


@pytest.mark.parametrize(
    ("at", "count", "order"),
    [
        (None, 2, "0 1 n0 2 3 n1"),
        (None, 8, "0 n0 n1 1 n2 n3 2 n4 n5 3 n6 n7"),
        ("end", 2, "0 1 2 3 n0 n1"),
        ("start", 2, "n0 n1 0 1 2 3"),
        ([0, 0, 2], 3, "0 n0 n1 1 2 n2 3"),
        ([-1], 1, "0 1 2 3 n0"),
        ([1, 3], 1, "0 1 n0 2 3 n1"),
    ],
)
def test_where_new_blocks_stand(at: Any, count: int, order: str) -> None:
    run = Run(FOUR)
    run.deepened(at=at, count=count, name="n" if count > 1 or at == [1, 3] else "n0")
    told = [b.removeprefix("blocks.").removeprefix("_seeds.").removesuffix(".module") for b in run.blocks]
    assert " ".join(told).replace("n_", "n") == order


def test_blocks_stand_behind_inserted_ones_and_in_front_of_them() -> None:
    run = Run(FOUR)
    for at, name in ([0], "a"), ([0], "b"), ([2], "c"), ("start", "d"), ("start", "e"), ([0], "f"):
        run.deepened(at=at, name=name)
    told = [b.removeprefix("blocks.").removeprefix("_seeds.").removesuffix(".module") for b in run.blocks]
    assert told == ["e", "f", "d", "0", "b", "a", "c", "1", "2", "3"]


def test_the_blocks_run_in_the_order_that_is_told() -> None:
    run = Run(FOUR)
    run.deepened(at=[0, 1], name="n", init="random")
    run.deepened(at="start", name="s", init="random")
    run.deepened(at=[1], name="m", init="random")
    ran: list[str] = []
    for name in run.blocks:
        run.host.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    run.given.run(run.host)
    # A hook on a block sees it begin, and those that stand in front of it run inside of its call.
    assert [n for n in ran if n != "blocks.0"] == [n for n in run.blocks if n != "blocks.0"]
    slots = [name for name in run.host.slots if name.endswith(".norm1")]
    assert [name.removesuffix(".norm1") for name in slots] == list(run.blocks)


def test_a_random_block_is_initialised_as_the_model_does() -> None:
    run = Run(MODELS["gpt2"])
    (seed,) = run.deepened(init="random")
    block = run.host.get_submodule("transformer.h.1")
    new, old = (m.attn.c_attn.weight.detach() for m in (seed.module, block))
    assert not torch.equal(new, old)
    assert 0.015 < float(new.std()) < 0.025  # GPT-2's initializer_range
    assert_same_bits(seed.module.ln_1.weight.detach(), torch.ones(16))


def test_what_nothing_initialises_is_refused() -> None:
    class Odd(TransformerBlock):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.randn(16))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.scale

    host = fxgraft.trace(nn.Sequential(Odd(), Odd()), (X,))
    manager = fxgraft.SeedManager(host)
    with pytest.raises(BlueprintError, match="nothing does so for scale"):
        manager.deepen("", init="random")
    with pytest.raises(SlotError, match="no sum"):
        manager.deepen("")
    manager.deepen("", init="copy")


def test_blocks_of_code_without_a_graph_get_all_arguments_and_run_in_calls_of_any_form() -> None:
    model = Tuples(1)
    host = fxgraft.trace(model, (X,))
    manager = fxgraft.SeedManager(host)
    before = host(X)
    manager.deepen("blocks")
    assert_same_bits(host(X), before)
    manager.deepen("blocks", init="copy", at=[0])
    by_hand = Tuples(3)
    for block, there in zip(by_hand.blocks, host.stacks["blocks"].blocks, strict=True):
        block.load_state_dict(host.get_submodule(there).state_dict())
    assert_same_bits(host(X), by_hand(X))
    block = by_hand.blocks[0]
    # Called by itself, in another form than the traced one: the new blocks run, too.
    mask = torch.ones(3, 16)
    alone = host.get_submodule("blocks.0")(X[0, :3], mask=mask, scale=2.0)
    x, seen = block(X[0, :3], mask, scale=2.0)
    for other in by_hand.blocks[1:]:
        x, _ = other(x, mask, scale=2.0)
    assert_same_bits(alone, (x, seen))


def test_parameters_join_the_groups_of_their_counterparts_with_their_state() -> None:
    host = FOUR.host()
    decayed = [p for p in host.parameters() if p.dim() > 1]
    rest = [p for p in host.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "lr": 1e-2, "weight_decay": 0.1},
            {"params": rest, "lr": 1e-3, "weight_decay": 0.0},
        ]
    )
    manager = fxgraft.SeedManager(host, optimizer, check_every=0)
    host(IDS).square().mean().backward()
    optimizer.step()
    (copied,) = manager.deepen("blocks", at=[1], optimizer_state="copy", init="copy")
    (fresh,) = manager.deepen("blocks", at="end")
    (again,) = manager.deepen("blocks", at=[2], optimizer_state="copy", init="copy")  # of the copy
    assert host.stacks["blocks"].blocks[2:4] == (
        f"_seeds.{copied.name}.module",
        f"_seeds.{again.name}.module",
    )
    for seed in copied, fresh, again:
        for parameter in seed.module.parameters():
            group = optimizer.param_groups[0 if parameter.dim() > 1 else 1]
            assert sum(p is parameter for p in group["params"]) == 1
    block = dict(host.blocks[1].named_parameters())
    for name, parameter in copied.module.named_parameters():
        state, old = optimizer.state[parameter], optimizer.state[block[name]]
        assert_same_bits(dict(state), dict(old))
        assert state["exp_avg"].data_ptr() != old["exp_avg"].data_ptr()
    assert not any(p in optimizer.state for p in fresh.module.parameters())
    assert all(p in optimizer.state for p in again.module.parameters())


def test_frozen_parameters_stay_frozen_in_the_copy() -> None:
    run = Run(FOUR)
    run.host.blocks[3].qkv.requires_grad_(False)
    (seed,) = run.deepened(at="end")
    assert [n for n, p in seed.module.named_parameters() if not p.requires_grad] == ["qkv.weight", "qkv.bias"]
    run.train(1)


def test_a_block_is_blended_in_and_culled_as_any_seed() -> None:
    run = Run(FOUR)
    run.train(1)
    before = run.seen()
    (seed,) = run.deepened(at=[1], init="random", blend=3)
    assert seed.stage is Stage.BLENDING
    assert_kept(run, before)
    run.train(3)
    assert seed.stage is Stage.HOLDING
    assert seed.alpha == 1.0
    slot = f"_seeds.{seed.name}.module.up"
    run.manager.germinate(slot, nn.Linear(64, 64), name="inside")
    with pytest.raises(StageError, match="has inside"):
        run.manager.cull(seed)
    with pytest.raises(StageError, match="Fossilize that one first"):
        run.manager.fossilize("inside", force=True)
    run.manager.cull("inside")
    run.manager.cull(seed)
    assert run.blocks == tuple(f"blocks.{i}" for i in range(4))
    assert not any(name.startswith("_seeds") for name in run.host.slots)
    run.train(1)


def test_an_isolated_block_is_not_felt() -> None:
    run, plain = Run(FOUR), Run(FOUR)
    (seed,) = run.deepened(init="random", isolated=True)
    run.train(3)
    plain.train(3)
    assert seed.stage is Stage.TRAINING
    assert_same_bits(run.host.model_state(), plain.host.model_state())
    moved = [bool(p.grad.any()) for p in seed.module.parameters()]
    assert any(moved)
    run.manager.blend(seed, steps=2)
    run.train(2)
    run.manager.fossilize(seed)
    run.train(1)


def test_private_dropout_leaves_the_stream_of_the_host_alone() -> None:
    given = Given(lambda layers: CharGPT(layers, dropout=0.5), 2, "blocks", (IDS,), {})
    run = Run(given)
    run.host.train()
    torch.manual_seed(1)
    before = run.seen()
    run.deepened(count=2)
    torch.manual_seed(1)
    assert_kept(run, before)


def test_a_seed_in_a_block_and_one_behind_it() -> None:
    run = Run(FOUR)
    before = run.seen()
    run.deepened(at=[0], name="n")
    run.manager.germinate("_seeds.n.module.up", nn.Linear(64, 64), name="inside", isolated=False)
    run.manager.germinate("blocks.0.add_1", nn.Linear(16, 16), name="behind")
    run.train(1)
    assert run.manager.seeds["inside"].training_runs == 1
    assert run.manager.seeds["behind"].training_runs == 1
    run.manager.cull_all()
    assert "inside" not in run.manager.seeds
    del before


def test_several_calls_are_applied_as_one_and_an_exception_takes_all_back() -> None:
    run = Run(FOUR)
    run.train(1)
    before = snapshot(run.host, IDS, [run.optimizer])

    def fails() -> None:
        with run.manager.together():
            run.deepened(count=2)
            run.deepened(at="end")
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fails()
    assert_same_bits(snapshot(run.host, IDS, [run.optimizer]), before)
    with run.manager.together():
        first = run.deepened(count=2, name="n")
        run.deepened(at=[0], name="m")
        assert [seed.stage for seed in first] == [Stage.GERMINATED] * 2
    assert {seed.stage for seed in run.manager.seeds.values()} == {Stage.FOSSILIZED}
    assert len(run.blocks) == 7


BAD = {
    "stack": (
        SlotError,
        r"stack: expected .*one of host.stacks \('blocks'\); got 'layers'",
        {"stack": "layers"},
    ),
    "count 0": (ValueError, r"count: expected a positive whole number; got 0", {"count": 0}),
    "count": (ValueError, r"count: expected a positive whole number; got 1.5", {"count": 1.5}),
    "at": (ValueError, r"at: expected None .*; got 'middle'", {"at": "middle"}),
    "index": (ValueError, r"at: expected indices of blocks, 0 to 3 .*; got 4", {"at": [4]}),
    "none": (ValueError, r"at: expected None", {"at": []}),
    "both": (
        ValueError,
        r"count: expected 2, as many as there are indices in at",
        {"at": [0, 1], "count": 3},
    ),
    "order": (ValueError, r"in running order; got \[2, 0\]", {"at": [2, 0]}),
    "like": (ValueError, r"like: expected 2 indices", {"count": 2, "like": [0]}),
    "like 0": (ValueError, r"like: expected None \(those in front\), or a list .*; got 0", {"like": 0}),
    "letters": (ValueError, r"like: expected None .*; got 'ab'", {"like": "ab"}),
    "init": (ValueError, r"init: expected one of 'zero', 'copy', 'random'; got 'ones'", {"init": "ones"}),
    "blend": (ValueError, r"blend: expected a whole number, 0 or more; got -1", {"blend": -1}),
    "isolated": (ValueError, r"isolated: expected True or False; got 1", {"isolated": 1}),
    "state": (ValueError, r"optimizer_state: expected one of", {"optimizer_state": "old"}),
    "name": (ValueError, r"name: expected letters", {"name": "a.b"}),
    "wait": (ValueError, r"wait: expected True or False", {"wait": 0}),
}


@pytest.mark.parametrize(("error", "told", "options"), BAD.values(), ids=list(BAD))
def test_bad_input_names_what_was_expected_and_changes_nothing(
    error: type[Exception], told: str, options: dict[str, Any]
) -> None:
    run = Run(FOUR)
    run.train(1)
    before = snapshot(run.host, IDS, [run.optimizer])
    with pytest.raises(error, match=told):
        run.manager.deepen(**{"stack": "blocks", **options})
    assert_same_bits(snapshot(run.host, IDS, [run.optimizer]), before)
    assert not run.manager.seeds
    run.deepened(name="n")


def test_what_is_no_stack_is_refused_with_the_reason() -> None:
    host = fxgraft.trace(Loop(way="beside"), (X,))
    optimizer = torch.optim.AdamW(host.parameters(), 1e-2)
    manager = fxgraft.SeedManager(host, optimizer)
    before = snapshot(host, X, [optimizer])
    with pytest.raises(SlotError, match=r"one of host\.stacks .*; got 'blocks': it has no alike blocks"):
        manager.deepen("blocks")
    assert_same_bits(before, snapshot(host, X, [optimizer]))


class Told(nn.Module):
    """A block that reads what the model sets in it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.drop, self.share = nn.Linear(5, 5), nn.Dropout(0.1), None

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.inner(x)) * self.share


class Telling(nn.Module):
    def __init__(self, resets: bool):
        super().__init__()
        self.blocks, self.resets = nn.ModuleList([Told(), Told()]), resets

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            block.share = x.mean()
            x = block(x)
            if self.resets:
                block.share = None
        return x


@pytest.mark.parametrize("resets", [True, False])
@pytest.mark.parametrize("init", ["zero", "copy"])
def test_a_block_that_needs_what_the_model_sets_in_its_own_ones_is_refused_by_name(
    resets: bool, init: str
) -> None:
    x = torch.randn(3, 5)
    host = fxgraft.trace(Telling(resets), (x,))
    host(x)
    manager = fxgraft.SeedManager(host)
    before = snapshot(host, x, [])
    with pytest.raises(BlueprintError, match=r"the model sets share of 'blocks\.1' in each call"):
        manager.deepen("blocks", name="new", at="end", init=init)
    assert_same_bits(before, snapshot(host, x, []))
    assert type(host.get_submodule("blocks.1")) is Told


class Own(Told):
    """One that sets it itself, which a copy does as well."""

    def forward(self, x: Tensor) -> Tensor:
        self.share = x.mean()
        return super().forward(x)


def test_a_block_that_sets_its_own_attributes_is_deepened() -> None:
    x = torch.randn(3, 5)
    host = fxgraft.trace(nn.Sequential(Own(), Own()), (x,))
    (new,) = fxgraft.SeedManager(host).deepen("", at="end", init="copy")
    host(x)
    assert torch.is_tensor(new.module.share)


class Post(nn.Module):
    """A block with its norm behind the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(16, 16), nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + torch.relu(self.inner(x)))


class Shared(nn.Module):
    """A block with a layer that all blocks share."""

    def __init__(self, shared: nn.Module):
        super().__init__()
        self.shared, self.own = shared, nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.own(self.shared(x))


class Unweighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x).softmax(-1)


def shared() -> nn.Module:
    layer = nn.Linear(16, 16)
    return nn.Sequential(Shared(layer), Shared(layer))


REFUSED = {
    "post": (lambda: nn.Sequential(Post(), Post()), "ends at 1.norm, no sum"),
    "shared": (shared, "shares its parameter shared.weight with"),
    "softmax": (lambda: nn.Sequential(Unweighted()), "0.softmax, which is no layer with weights"),
    "weight norm": (
        lambda: nn.Sequential(*(nn.utils.parametrizations.weight_norm(b.inner) and b for b in [Branch()])),
        "whose weight is computed of others",
    ),
}


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


@pytest.mark.parametrize(("make", "told"), REFUSED.values(), ids=list(REFUSED))
def test_blocks_that_cannot_be_zeroed_are_refused_by_name(make: Any, told: str) -> None:
    host = fxgraft.trace(make(), (X,))
    with pytest.raises(SlotError, match=told):
        fxgraft.SeedManager(host).deepen("")
    assert not host.structure.placements


class Branching(nn.Module):
    """Code without a graph, which ends with a layer or with something else."""

    def __init__(self, ends: str):
        super().__init__()
        self.ends, self.layer = ends, nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        if bool(x.sum() > -1e9):
            x = {"layer": lambda: (x, 1), "softmax": lambda: (x.softmax(-1), 1)}[self.ends]()[0]
        return x.view(x.shape) * 2


class AroundIt(nn.Module):
    def __init__(self, ends: str):
        super().__init__()
        self.inner = Branching(ends)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def test_the_end_of_a_branch_without_a_graph_is_found_on_a_run_or_named() -> None:
    host = fxgraft.trace(nn.Sequential(AroundIt("layer"), AroundIt("layer")), (X,))
    assert "0.inner" in host.opaque
    before = host(X)
    (seed,) = fxgraft.SeedManager(host).deepen("")
    assert_same_bits(host(X), before)
    assert not any(bool(parameter.any()) for parameter in seed.module.parameters())
    host = fxgraft.trace(nn.Sequential(AroundIt("softmax"), AroundIt("softmax")), (X,))
    with pytest.raises(SlotError, match=r"softmax in 1\.inner, which is no layer with weights"):
        fxgraft.SeedManager(host).deepen("")
    assert not host.structure.placements


STEPS: dict[str, tuple[Any, str]] = {
    "build": (new_blocks, "build"),
    "try": (new_blocks, "try_out"),
    "claim the parameters": (SeedParameterRegistry, "claim"),
    "make the regions": (engine, "ensure_block_regions"),
    "generate the code": (engine, "prepare"),
    "swap the structure": (engine, "set_structure"),
    "compile": (engine, "warm_up"),
    "join the optimizer": (SeedParameterRegistry, "join"),
    "copy the state": (SeedParameterRegistry, "copy_state"),
    "watch the gradients": (SeedGradients, "watch"),
}


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_failure_in_any_step_leaves_model_and_optimizer_as_before(
    step: str, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(TWO)
    run.train(1)
    run.deepened(at=[0], name="there")
    before = snapshot(run.host, IDS, [run.optimizer])
    owner, method = STEPS[step]
    original = getattr(owner, method)
    calls = iter([False, True])  # the second of three blocks

    def failing(*args: Any, **kwargs: Any) -> Any:
        fails = next(calls, False) or (
            method in ("ensure_block_regions", "prepare", "set_structure", "warm_up") and next(calls, False)
        )
        if fails and not late:
            raise RuntimeError("injected")
        result = original(*args, **kwargs)
        if fails:
            raise RuntimeError("injected")
        return result

    with monkeypatch.context() as patched:
        patched.setattr(owner, method, failing)
        with pytest.raises(RuntimeError, match="injected"):
            run.deepened(count=3, optimizer_state="copy", name="n")
    assert_same_bits(snapshot(run.host, IDS, [run.optimizer]), before)
    assert list(run.manager.seeds) == ["there"]
    assert len(run.blocks) == 3
    run.deepened(count=3, optimizer_state="copy", name="n")
    run.train(1)


def test_disabled_it_is_a_recorded_no_op() -> None:
    run = Run(FOUR, enabled=False)
    seeds = run.deepened(count=2)
    assert [seed.stage for seed in seeds] == [Stage.DORMANT] * 2
    assert len(run.blocks) == 4


def test_a_copy_of_the_host_has_its_blocks() -> None:
    run = Run(FOUR)
    run.deepened(count=2, init="random")
    twin = copy.deepcopy(run.host)
    assert twin.stacks["blocks"].blocks == run.blocks
    assert_same_bits(value_of(twin(IDS)), value_of(run.host(IDS)))
    assert twin.get_submodule(run.blocks[-1]) is not run.host.get_submodule(run.blocks[-1])
