"""After `manager.fuse` training goes on as with the branch: optimizers, gradients, what is frozen."""

import copy

import pytest
import torch

import fxgraft
from fxgraft.errors import SlotError
from tests.harness import assert_same_bits, snapshot
from tests.resizing.models import Mlp
from tests.resizing.test_fusing import BATCH, Activated, Bare, WithPart, grown
from tests.resizing.test_widening import outputs, steps


def adam(kind=torch.optim.AdamW, **options):
    def make(parameters, lr):
        return kind(parameters, lr=1e-3, **options)

    return make


def young(optimizer, alpha=1.0):
    """A host that has taken many steps, and a fossil beside its part that has taken three."""
    torch.manual_seed(0)
    host = fxgraft.trace(WithPart(Bare()), (BATCH,))
    trainer = optimizer(host.parameters(), lr=0.05)
    manager = fxgraft.SeedManager(host, trainer, check_every=0)
    steps(host, trainer, manager, BATCH, 20)
    for state in trainer.state.values():
        if "step" in state:
            state["step"] += 1000
    manager.germinate("part", Bare(5), source="inner", name="a", isolated=False)
    manager.blend("a", to=alpha, steps=0)
    steps(host, trainer, manager, BATCH, 3)
    manager.fossilize("a")
    return host, trainer, manager


@pytest.mark.parametrize("frozen", ["part", "a"])
@pytest.mark.parametrize("seed", [Mlp(), None])
def test_what_trains_does_not_become_one_with_what_is_frozen(frozen, seed):
    seed = copy.deepcopy(seed)
    options = {"source": None, "slot": "inner", "rank": 2} if seed is None else {}
    host, optimizer, manager = grown(Mlp(), seed or "low_rank", **options)
    layer = host.inner if seed is None else host.part
    (manager.seeds["a"].module if frozen == "a" else layer).requires_grad_(False)
    before = snapshot(host, BATCH, [optimizer])
    said = "is frozen, and .* trains" if frozen == "a" else "trains, and .* is frozen"
    with pytest.raises(SlotError, match=said):
        manager.fuse("a")
    assert_same_bits(before, snapshot(host, BATCH, [optimizer]))
    layer.requires_grad_(True)
    manager.seeds["a"].module.requires_grad_(True)
    assert list(manager.fuse("a")) == ["a"]


@pytest.mark.parametrize("seed", ["low_rank", Bare(5)])
def test_what_an_optimizer_trains_does_not_go_to_a_layer_that_none_has(seed):
    host = fxgraft.trace(WithPart(Bare()), (BATCH,))
    optimizer = torch.optim.SGD(host.head.parameters(), lr=0.05)
    manager = fxgraft.SeedManager(host, optimizer, check_every=0)
    slot, source = ("inner", None) if seed == "low_rank" else ("part", "inner")
    manager.germinate(slot, copy.deepcopy(seed), source=source, name="a", isolated=False)
    steps(host, optimizer, manager, BATCH, 2)
    manager.blend("a", steps=0)
    manager.fossilize("a", force=True)
    with pytest.raises(SlotError, match=r"is trained by an optimizer, and .* by none"):
        manager.fuse("a")
    optimizer.add_param_group({"params": [*host.inner.parameters(), *host.part.parameters()]})
    assert list(manager.fuse("a")) == ["a"]


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize(
    "optimizer",
    [adam(torch.optim.Adam), adam(), adam(amsgrad=True), adam(torch.optim.Adamax), torch.optim.Adagrad],
)
def test_the_next_updates_are_as_large_as_without_fusing(optimizer, alpha):
    (host, trainer, manager), other = young(optimizer, alpha), young(optimizer, alpha)
    manager.fuse("a")
    branch = other[2].seeds["a"].module
    moved = []
    for one, weight in (((host, trainer, manager), host.part.up.weight), (other, branch.up.weight)):
        before = weight.detach()[-5:].clone()
        steps(*one, BATCH, 1)
        moved.append((weight.detach()[-5:] - before).abs().mean().item())
    assert 0.6 < moved[0] / moved[1] < 1.6


def test_moments_stand_for_the_same_under_an_older_count():
    host, trainer, manager = young(adam(), alpha=0.5)
    module, beta1, beta2 = manager.seeds["a"].module, 0.9, 0.999
    then = {name: dict(trainer.state[p]) for name, p in module.named_parameters()}
    manager.fuse("a")
    for name, columns in (("up", False), ("down", True)):
        state, old = trainer.state[host.part.get_submodule(name).weight], then[f"{name}.weight"]
        share = 0.5 if columns else 1.0  # the last layer's weight is half of what it was
        for key, beta, power in (("exp_avg", beta1, 1), ("exp_avg_sq", beta2, 2)):
            now = state[key][:, -5:] if columns else state[key][-5:]
            expected = old[key] / (1 - beta ** float(old["step"])) / share**power
            corrected = now / (1 - beta ** float(state["step"]))
            torch.testing.assert_close(corrected, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", [torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adafactor])
def test_state_whose_rule_is_not_known_is_refused(kind):
    host, trainer, manager = young(adam(kind))
    before = snapshot(host, BATCH, [trainer])
    with pytest.raises(SlotError, match=kind.__name__):
        manager.fuse("a")
    assert_same_bits(before, snapshot(host, BATCH, [trainer]))


def with_two_optimizers(other, **options):
    torch.manual_seed(0)
    host = fxgraft.trace(WithPart(Bare()), (BATCH,))
    parameters = list(host.parameters())
    trainers = [torch.optim.AdamW(parameters[:-2], 1e-3), other(parameters[-2:], 1e-3)]
    manager = fxgraft.SeedManager(host, trainers, check_every=0)
    manager.germinate("part", Bare(5), source="inner", name="a", isolated=False, **options)
    manager.blend("a", steps=0)
    for _ in range(3):
        host(BATCH).pow(2).mean().backward()
        for trainer in trainers:
            trainer.step()
            trainer.zero_grad()
        manager.step()
    manager.fossilize("a")
    return host, trainers, manager


def test_state_of_another_optimizer_comes_along():
    host, trainers, manager = with_two_optimizers(torch.optim.AdamW, optimizer=1)
    then = trainers[1].state[manager.seeds["a"].module.up.weight]["exp_avg_sq"].clone()
    manager.fuse("a")
    torch.testing.assert_close(
        trainers[0].state[host.part.up.weight]["exp_avg_sq"][-5:], then, rtol=1e-4, atol=0
    )


def test_an_optimizer_of_another_class_is_refused():
    *_, manager = with_two_optimizers(torch.optim.Adamax, optimizer=1)
    with pytest.raises(SlotError, match="was trained by Adamax"):
        manager.fuse("a")


def test_other_settings_of_the_optimizer_are_told(caplog):
    *_, manager = with_two_optimizers(torch.optim.AdamW, hyper={"lr": 1e-5})
    manager.fuse("a")
    said = [r.getMessage() for r in caplog.records if "is trained with" in r.getMessage()]
    assert said == [
        "seed a: the optimizer trained it with lr=1e-05; as a part of part.up it is trained with lr=0.001 "
        "from now on"
    ]


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_gradients_that_wait_for_a_step_are_kept(alpha):
    (host, _, manager), other = (young(torch.optim.SGD, alpha) for _ in range(2))
    for one in (host, other[0]):
        one.zero_grad()
        one(BATCH).pow(2).sum().backward()
    manager.fuse("a")
    branch = other[2].seeds["a"].module
    assert torch.equal(host.part.up.weight.grad[:8], other[0].part.up.weight.grad)
    assert torch.equal(host.part.up.weight.grad[8:], branch.up.weight.grad)
    torch.testing.assert_close(host.part.down.weight.grad[:, 8:], branch.down.weight.grad / alpha)
    waiting = host.part.down.weight.grad.clone()
    host.zero_grad()
    host(BATCH).pow(2).sum().backward()
    torch.testing.assert_close(host.part.down.weight.grad, waiting)


@pytest.mark.parametrize("is_reversed", [False, True])
def test_the_layer_that_runs_last_has_the_alpha(is_reversed):
    part, seed = (Activated(is_reversed=is_reversed) for _ in range(2))
    host = fxgraft.trace(WithPart(part), (BATCH,))
    manager = fxgraft.SeedManager(host)
    manager.germinate("part", seed, source="inner", name="a", isolated=False)
    manager.blend("a", to=0.5, steps=0)
    manager.fossilize("a", force=True)
    before = outputs(host, BATCH)
    manager.fuse("a")
    torch.testing.assert_close(outputs(host, BATCH), before)


class Normed(torch.optim.Optimizer):
    """Divides each update by its norm, as LARS and LAMB do."""

    def __init__(self, params, lr=1e-2):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                p -= group["lr"] * p.grad / (p.grad.norm() + 1e-6)


class Signed(Normed):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                p -= group["lr"] * p.grad.sign()


@pytest.mark.parametrize(
    ("kind", "is_coupled"),
    [(torch.optim.Muon, True), (Normed, True), (Signed, False), (torch.optim.SGD, False)],
)
def test_an_optimizer_that_moves_a_layer_as_a_whole_is_named(kind, is_coupled, caplog):
    host = fxgraft.trace(WithPart(Bare()), (BATCH,))
    matrices = kind([p for p in host.parameters() if p.dim() == 2], lr=1e-3)
    rest = torch.optim.AdamW([p for p in host.parameters() if p.dim() != 2], lr=1e-3)
    manager = fxgraft.SeedManager(host, [matrices, rest], check_every=0)
    manager.germinate("part", Bare(5), source="inner", name="a", isolated=False)
    manager.blend("a", steps=0)
    for _ in range(2):
        host(BATCH).square().mean().backward()
        matrices.step()
        rest.step()
        manager.step()
    manager.fossilize("a")
    caplog.clear()
    manager.fuse("a")
    said = [record.getMessage() for record in caplog.records]
    expected = f"seed a: {kind.__name__} computes the update of a parameter from all of it together"
    assert any(text.startswith(expected) for text in said) is is_coupled
