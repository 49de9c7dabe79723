"""``fxgraft.unwrap`` and ``fxgraft.transplant`` of deepened hosts: what fits, and what does not, by name."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft.errors import FxGraftError, StageError, TransplantError
from tests.harness import assert_same_bits, snapshot
from tests.resizing.deep_models import IDS, MODELS, CharGPT, Run, TransformerBlock
from tests.resizing.test_stacks import X

CHAR = MODELS["char"]


def grown() -> Run:
    """A host of eight layers that grew from one."""
    run = Run(CHAR)
    run.train(2)
    run.deepened(count=1)
    run.train(1)
    run.deepened(count=2, init="copy", optimizer_state="copy")
    run.train(1)
    run.deepened(at="end", count=2, init="random")
    run.deepened(at=[0], count=2)
    run.train(2)
    return run


def test_eight_layers_that_grew_from_one_are_the_hand_written_class_and_train_on_there() -> None:
    run = grown()
    assert len(run.blocks) == 8
    target = CharGPT(8)
    optimizer = torch.optim.AdamW(target.parameters(), 1e-2, weight_decay=0.1)
    done = fxgraft.transplant(run.host, target, optimizer=run.optimizer, target_optimizer=optimizer)
    assert done.max_abs == 0.0
    assert done.renamed[f"{run.blocks[-1]}.out.weight"] == "blocks.7.out.weight"
    for _ in range(3):
        for model, trainer in (run.host, run.optimizer), (target, optimizer):
            trainer.zero_grad()
            logits = model(IDS)
            logits.square().mean().backward()
        assert_same_bits(target(IDS).detach(), run.host(IDS).detach())
        ours = dict(run.host.named_parameters())
        theirs = dict(target.named_parameters())
        for name, parameter in ours.items():
            assert_same_bits(theirs[done.renamed.get(name, name)].grad, parameter.grad, name)
        run.optimizer.step()
        optimizer.step()


def test_the_plain_form_has_the_keys_and_the_code_of_the_class() -> None:
    run = grown()
    plain = fxgraft.unwrap(run.host)
    assert type(plain) is CharGPT
    assert list(plain.state_dict()) == list(CharGPT(8).state_dict())
    assert type(plain.blocks[7]) is TransformerBlock
    again = pickle.loads(pickle.dumps(plain))
    assert_same_bits(again(IDS), run.host(IDS))
    # Of another form than the traced call, in which a host has no graph.
    assert_same_bits(again(IDS[:1, :3]), run.host(IDS[:1, :3]))


def test_a_host_of_nan_is_compared_with_nothing_and_refused() -> None:
    run = Run(CHAR)
    with torch.no_grad():
        run.host.get_parameter("tokens.weight").fill_(float("nan"))
    target = CharGPT(1)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(TransplantError, match=r"cannot be seen: .*all of them are NaN"):
        fxgraft.transplant(run.host, target)
    assert_same_bits(dict(target.state_dict()), before)


def test_weights_of_another_dtype_are_named_where_they_make_a_difference() -> None:
    target = CharGPT(1).half()
    with pytest.raises(
        TransplantError, match=r"settings .*'.*' is torch.float16 there, and torch.float32 in"
    ):
        fxgraft.transplant(Run(CHAR).host, target)


class Chosen(nn.Module):
    """Calls its blocks one by one: more in the container would not run."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([TransformerBlock(), TransformerBlock()])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[1](self.blocks[0](x))


class Counted(nn.Module):
    """Has the number of its blocks beside them."""

    def __init__(self, n_layer: int = 2) -> None:
        super().__init__()
        self.n_layer = n_layer
        self.blocks = nn.ModuleList(TransformerBlock() for _ in range(n_layer))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(self.n_layer):
            x = self.blocks[i](x)
        return x


class NamedBlocks(nn.Module):
    """Has its blocks in a container by names, as torchvision's vision transformers."""

    def __init__(self, blocks: int = 2, word: str = "encoder_layer_", first: int = 0) -> None:
        super().__init__()
        named = OrderedDict((f"{word}{first + i}", TransformerBlock()) for i in range(blocks))
        self.layers = nn.Sequential(OrderedDict(entry=nn.LayerNorm(16)) | named | OrderedDict(end=nn.Tanh()))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize("first", [0, 1])
def test_blocks_with_names_that_count_them_are_named_as_in_the_larger_class(first: int) -> None:
    host = fxgraft.trace(NamedBlocks(first=first), (X,))
    fxgraft.SeedManager(host).deepen("layers", at=[0], count=2, init="random", name="n")
    plain = fxgraft.unwrap(host)
    assert list(plain.state_dict()) == list(NamedBlocks(4, first=first).state_dict())
    assert type(plain) is NamedBlocks
    assert_same_bits(plain(X), host(X))
    assert fxgraft.transplant(host, NamedBlocks(4, first=first)).max_abs == 0.0


def test_a_name_that_another_child_has_is_not_taken() -> None:
    """The blocks run as parts of their neighbours then."""
    model = NamedBlocks()
    model.layers._modules = {
        "encoder_layer_2" if n == "entry" else n: m for n, m in model.layers._modules.items()
    }
    host = fxgraft.trace(model, (X,))
    fxgraft.SeedManager(host).deepen("layers", init="random", name="n")
    plain = fxgraft.unwrap(host)
    assert_same_bits(plain(X), host(X))
    assert set(model.state_dict()) <= set(plain.state_dict())


def test_where_the_own_code_would_not_run_them_blocks_are_parts_of_their_neighbours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    host = fxgraft.trace(Chosen(), (X,))
    fxgraft.SeedManager(host).deepen("blocks", 2, init="random", name="n")
    plain = fxgraft.unwrap(host)
    assert "the code of Chosen does not compute the same with the inserted blocks" in caplog.text
    assert_same_bits(plain(X), host(X))
    assert "blocks.0.seed_n_0.out.weight" in plain.state_dict()
    # The model by hand can have them all the same.
    assert fxgraft.transplant(host, nn.Sequential(Counted(4))[0]).max_abs == 0.0


def test_a_host_that_trains_with_batch_norms_is_unwrapped_as_one_that_does_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = MODELS["resnet"]
    host = given.host().train()
    optimizer = torch.optim.SGD(host.parameters(), 0.1)
    manager = fxgraft.SeedManager(host, optimizer)
    manager.deepen("layer1", 2)
    for _ in range(2):
        optimizer.zero_grad()
        given.run(host).square().mean().backward()
        optimizer.step()
        manager.step()
    plain: Any = fxgraft.unwrap(host)
    assert (host.training, len(plain.layer1), caplog.text) == (True, 4, "")
    assert all(seed.module.training for seed in manager.seeds.values() if seed.module)


def test_a_count_beside_the_blocks_follows() -> None:
    host = fxgraft.trace(Counted(), (X,))
    fxgraft.SeedManager(host).deepen("blocks", 2, init="random")
    plain: Any = fxgraft.unwrap(host)
    assert (type(plain), plain.n_layer, host.n_layer) == (Counted, 4, 2)
    assert_same_bits(plain(X), host(X))


def test_another_fossil_in_a_block_stays_a_part_of_it() -> None:
    host = fxgraft.trace(Counted(), (X,))
    manager = fxgraft.SeedManager(host)
    manager.deepen("blocks", init="random", at=[0], name="n")
    for slot in "blocks.0.up", "_seeds.n.module.up":
        manager.fossilize(manager.germinate(slot, nn.Linear(64, 64), isolated=False), force=True)
    plain = fxgraft.unwrap(host)
    assert [key for key in plain.state_dict() if "seed" in key] == [
        f"blocks.{i}.seed_Linear_at_{at}_up.{name}"
        for i, at in enumerate(("blocks_0", "n"))
        for name in ("weight", "bias")
    ]
    assert_same_bits(plain(X), host(X))
    with pytest.raises(TransplantError, match=r"blocks\.0\.seed_Linear_at_blocks_0_up.*manager\.fuse"):
        fxgraft.transplant(host, Counted(3))
    manager.fuse(*(name for name in manager.seeds if name != "n"))  # what the error says to do
    target = Counted(3)
    fxgraft.transplant(host, target)
    assert_same_bits(target(X), host(X))


BAD = {
    "too small": (lambda: CharGPT(7), r"'blocks\.7' of the grown model has no counterpart in the target"),
    "too large": (lambda: CharGPT(9), r"'blocks\.8' of the target has no counterpart in the grown model"),
    "too wide": (lambda: CharGPT(8, 32), r"expected shape \(32, 16\), that of 'tokens.weight'"),
    "another": (lambda: nn.Sequential(nn.Linear(2, 2)), "has no counterpart"),
    "lacks": (
        lambda: _without_bias(CharGPT(8)),
        r"'blocks\.3\.down\.bias' of the grown model has no counterpart",
    ),
    "computes": (lambda: _with_other_code(CharGPT(8)), "computes something else with these weights"),
    "no number": (lambda: _without_numbers(CharGPT(8)), "it differs by up to inf"),
}


def _without_bias(model: CharGPT) -> CharGPT:
    model.blocks[3].down.bias = None
    return model


def _with_other_code(model: CharGPT) -> CharGPT:
    model.norm.eps = 1.0
    return model


def _without_numbers(model: CharGPT) -> CharGPT:
    model.norm.register_forward_hook(lambda module, args, out: out * float("nan"))
    return model


@pytest.fixture(scope="module")
def eight() -> Run:
    return grown()


@pytest.mark.parametrize(("make", "told"), BAD.values(), ids=list(BAD))
def test_what_does_not_fit_is_named_and_left_as_it_was(make: Any, told: str, eight: Run) -> None:
    target = make()
    before = {name: t.clone() for name, t in target.state_dict().items()}
    with pytest.raises(TransplantError, match=told) as raised:
        fxgraft.transplant(eight.host, target)
    assert isinstance(raised.value, FxGraftError)
    assert_same_bits(dict(target.state_dict()), before)


def test_live_seeds_and_half_given_optimizers_are_refused(eight: Run) -> None:
    target = CharGPT(8)
    half = torch.optim.AdamW(target.blocks[0].parameters(), 1e-2)
    with pytest.raises(ValueError, match="got AdamW, NoneType"):
        fxgraft.transplant(eight.host, target, optimizer=eight.optimizer)
    with pytest.raises(ValueError, match=r"one that trains 'tokens\.weight' of the target"):
        fxgraft.transplant(eight.host, target, optimizer=eight.optimizer, target_optimizer=half)
    with pytest.raises(TypeError, match=r"target: expected an nn\.Module"):
        fxgraft.transplant(eight.host, "model")
    run = Run(CHAR)
    run.deepened(blend=3)
    with pytest.raises(StageError, match="cannot transplant a host with live seeds"):
        fxgraft.transplant(run.host, CharGPT(2))


class OfOtherArguments(CharGPT):
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(ids)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: OfOtherArguments(8), "does not run the host's example call in eval mode: TypeError"),
        (lambda: CharGPT(8).to("meta"), r"'tokens\.weight' of the target is on the device meta"),
    ],
)
def test_a_target_that_cannot_be_compared_is_refused(eight: Run, make: Any, said: str) -> None:
    target = make()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(TransplantError, match=said):
        fxgraft.transplant(eight.host, target)
    if not target.tokens.weight.is_meta:
        assert_same_bits(dict(target.state_dict()), before)


def test_the_optimizer_state_has_the_dtype_of_the_target(eight: Run) -> None:
    target = CharGPT(8).double()
    optimizer = torch.optim.AdamW(target.parameters(), 1e-2)
    fxgraft.transplant(eight.host, target, optimizer=eight.optimizer, target_optimizer=optimizer)
    assert optimizer.state[target.tokens.weight]["exp_avg"].dtype is torch.float64
    target(IDS).square().mean().backward()
    optimizer.step()


def test_a_target_whose_optimizer_keeps_more_is_refused(eight: Run) -> None:
    target = CharGPT(8)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    optimizer = torch.optim.AdamW(target.parameters(), 1e-2, amsgrad=True)
    with pytest.raises(ValueError, match=r"it keeps 'max_exp_avg_sq' of 'tokens\.weight'"):
        fxgraft.transplant(eight.host, target, optimizer=eight.optimizer, target_optimizer=optimizer)
    with pytest.raises(TypeError, match="target_optimizer: expected one optimizer; got list"):
        fxgraft.transplant(eight.host, target, optimizer=eight.optimizer, target_optimizer=[optimizer])  # type: ignore[arg-type]
    assert_same_bits(dict(target.state_dict()), before)
    assert not optimizer.state


def test_names_that_differ_are_matched_by_their_order() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(TransformerBlock(), TransformerBlock(), TransformerBlock())

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    host = fxgraft.trace(Counted(), (X,))
    fxgraft.SeedManager(host).deepen("blocks", at=[0], init="random", name="n")
    done = fxgraft.transplant(host, Other())
    assert done.max_abs == 0.0
    assert done.renamed["_seeds.n.module.up.bias"] == "layers.1.up.bias"
    assert done.renamed["blocks.1.up.bias"] == "layers.2.up.bias"


class Stages(nn.Module):
    """A stack of stages, each with a stack of blocks."""

    class Stage(nn.Module):
        def __init__(self, blocks: int):
            super().__init__()
            self.blocks = nn.Sequential(*(TransformerBlock() for _ in range(blocks)))

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks(x)

    def __init__(self, *blocks: int):
        super().__init__()
        self.stages = nn.ModuleList(self.Stage(n) for n in blocks)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return x


class Shortened(nn.Module):
    """Whose first block has layers on its other way, where the others have none, as in a stage of timm."""

    class Part(nn.Module):
        def __init__(self, before: int):
            super().__init__()
            self.layer = nn.Linear(before, 6)
            self.shortcut = nn.Identity() if before == 6 else nn.Sequential(nn.Linear(before, 6), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + self.shortcut(x)

    def __init__(self, blocks: int):
        super().__init__()
        self.stage = nn.Sequential(self.Part(X.shape[-1]), *(self.Part(6) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.stage(x)


def test_a_first_block_with_other_parts_stays_where_it_is() -> None:
    host, target = fxgraft.trace(Shortened(2), (X,)), Shortened(3)
    fxgraft.SeedManager(host).deepen("stage", at="end", init="copy")
    assert fxgraft.transplant(host, target).max_abs == 0.0
    assert_same_bits(target(X), host(X))


def test_stacks_in_inserted_blocks_are_stacks() -> None:
    host = fxgraft.trace(Stages(1, 1), (X,))
    manager = fxgraft.SeedManager(host)
    manager.deepen("stages", at=[0], init="random", name="s")
    inner = "_seeds.s.module.blocks"
    assert host.stacks[inner].blocks == (f"{inner}.0",)
    manager.deepen(inner, init="random", name="b")
    assert host.stacks[inner].blocks == (f"{inner}.0", "_seeds.b.module")
    out = host(X)
    plain = fxgraft.unwrap(host)
    assert_same_bits(plain(X), out)
    assert list(plain.state_dict()) == list(Stages(1, 2, 1).state_dict())
    target = Stages(1, 2, 1)
    done = fxgraft.transplant(host, target)
    assert done.renamed["_seeds.b.module.up.bias"] == "stages.1.blocks.1.up.bias"
    assert_same_bits(target(X), out)


def test_the_host_is_left_as_it_was(eight: Run) -> None:
    target = CharGPT(8)
    before = snapshot(eight.host, IDS, [eight.optimizer])
    eight.host.train()
    fxgraft.unwrap(eight.host)
    fxgraft.transplant(eight.host, target)
    assert eight.host.training
    assert all(module.training for module in eight.host.modules())
    eight.host.eval()
    assert_same_bits(snapshot(eight.host, IDS, [eight.optimizer]), before)
