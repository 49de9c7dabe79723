"""What a user may take for right is refused in words that help, and changes nothing."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft import SeedManager
from fxgraft.errors import BlueprintError, CheckpointError, SlotError, StageError, TraceError
from fxgraft.training import clip_per_owner
from tests.harness import assert_same_bits, snapshot

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
LAYER = nn.Linear(3, 3)


def grown() -> SeedManager:
    torch.manual_seed(0)
    host = fxgraft.trace(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), (X,))
    manager = SeedManager(host, torch.optim.AdamW(host.parameters(), 1e-2))
    manager.germinate("1", "mlp", name="a")
    return manager


def layer() -> fxgraft.Host:
    return fxgraft.trace(LAYER, (X,))


CASES: dict[str, tuple[Callable[[SeedManager], Any], type[Exception], str]] = {
    "a slot for its name": (
        lambda m: m.germinate(m.host.slots["0"], "mlp"),  # type: ignore[arg-type]
        SlotError,
        "slot: expected a name, one of host.slots; got a Slot, whose name is '0'",
    ),
    "a number for a name": (lambda m: m.germinate(0, "mlp"), SlotError, "got 0"),  # type: ignore[arg-type]
    "an option misspelled": (
        lambda m: m.germinate("0", "mlp", hiden=3),
        BlueprintError,
        "blueprint mlp at slot '0': got an unexpected keyword argument 'hiden'; its options: hidden",
    ),
    "hyper": (
        lambda m: m.germinate("0", "mlp", hyper=3),  # type: ignore[arg-type]
        ValueError,
        "hyper: expected settings by name, like {'lr': 1e-3}; got 3",
    ),
    "no loss": (lambda m: m.measure("a", lambda: None), TypeError, "evaluate: expected .*; got None"),  # type: ignore[arg-type,return-value]
    "text for a loss": (lambda m: m.measure("a", lambda: "x"), TypeError, "evaluate: .*; got 'x'"),  # type: ignore[arg-type,return-value]
    "many losses": (lambda m: m.measure("a", lambda: X), TypeError, r"evaluate: .*; got a tensor \(4, 3\)"),
    "alpha": (lambda m: m.measure("a", lambda: 1.0, at=3), ValueError, "alpha: .*between 0 and 1; got 3"),
    "a copy": (copy.deepcopy, TypeError, r"neither copied nor pickled: save\(\) and load\(\)"),
    "a pickle": (pickle.dumps, TypeError, r"neither copied nor pickled: save\(\) and load\(\)"),
    "a host to clip": (lambda m: clip_per_owner(m.host, 1.0), TypeError, "expected a SeedManager; got Host"),  # type: ignore[arg-type]
    "keywords": (
        lambda m: fxgraft.trace(LAYER, (X,), 3),  # type: ignore[arg-type]
        TraceError,
        "example_kwargs: expected names with values; got int",
    ),
    "several seeds at once": (
        lambda m: m.cull(["a"]),
        TypeError,
        "seed: expected a Seed or the name of one.*list",
    ),  # type: ignore[arg-type]
    "several in a list": (lambda m: m.fuse(["a"]), TypeError, "one for each argument; got list"),  # type: ignore[arg-type]
    "a seed of another run": (
        lambda m: m.blend(grown().seeds["a"]),
        StageError,
        "which this manager did not germinate; there are: a",
    ),
    "no host": (lambda m: SeedManager(None), TypeError, "host: expected a fxgraft.Host .*; got NoneType"),  # type: ignore[arg-type]
    "no model": (
        lambda m: fxgraft.load_model("a file", 3),
        TypeError,
        "model: expected a new nn.Module.*got int",
    ),  # type: ignore[arg-type]
    "no blueprint, in the background": (
        lambda m: m.germinate("0", "mpl", wait=False),
        BlueprintError,
        "no blueprint is named 'mpl'",
    ),
    "a number for a blueprint, in the background": (
        lambda m: m.germinate("0", 3, wait=False),  # type: ignore[arg-type]
        BlueprintError,
        "slot '0': expected a blueprint's name, an nn.Module or a factory; got int",
    ),
    "one layer": (lambda m: layer().slot("0"), SlotError, r"no slots: .*nn.Sequential\(layer\)"),
    "some of one layer": (lambda m: layer().slots.select("*"), SlotError, "the host has no slots"),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_told_and_changes_nothing(case: str) -> None:
    call, error, says = CASES[case]
    manager = grown()
    before = snapshot(manager.host, X, manager._optimizers)
    with pytest.raises(error, match=says):
        call(manager)
    assert_same_bits(snapshot(manager.host, X, manager._optimizers), before, case)
    assert list(manager.seeds) == ["a"]


def test_the_first_argument_has_the_name_of_the_contract() -> None:
    manager = grown()
    manager.pause(seed_or_name="a")
    manager.resume(seed_or_name=manager.seeds["a"])
    manager.blend(seed_or_name="a", steps=0, force=True)
    manager.fossilize(seed_or_name="a", force=True)
    manager.cull(seed_or_name=manager.germinate("1", "mlp"))
    assert list(manager.seeds) == ["a"]


def test_nothing_is_germinated_in_inference_mode() -> None:
    manager = grown()
    with torch.inference_mode(), pytest.raises(StageError, match=r"torch\.inference_mode"):
        manager.germinate("0", "mlp")
    assert list(manager.seeds) == ["a"]


@pytest.mark.parametrize("stage", ["TRAINING", "HOLDING", "FOSSILIZED"])
def test_a_manager_whose_host_was_cleared_says_so(stage: str, tmp_path: Path) -> None:
    manager = grown()
    if stage != "TRAINING":
        manager.blend("a", steps=0)
    if stage == "FOSSILIZED":
        manager.fossilize("a", force=True)
    manager.host.clear()
    for call in (manager.step, lambda: manager.save(tmp_path / "run")):
        with pytest.raises(StageError, match=r"host\.clear.*'a'"):
            call()
    assert manager.steps == 0
    assert not list(tmp_path.iterdir())
    if stage == "FOSSILIZED":
        return
    manager.cull_all()
    manager.step()
    trained = {id(p) for group in manager._optimizers[0].param_groups for p in group["params"]}
    assert trained == set(map(id, manager.host.parameters()))


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.measure("a", lambda: 1.0),
        lambda m: m.at_alpha("a", 0.5),
        lambda m: m.blend("a", steps=0),
        lambda m: m.fossilize("a", force=True),
        lambda m: m.pause("a"),
        lambda m: m.resume("a"),
        lambda m: m.fuse("a"),
        lambda m: m.germinate("1", "mlp", before="a"),
        lambda m: m.germinate("1", "mlp", after=m.seeds["a"]),
    ],
)
@pytest.mark.parametrize("stage", ["TRAINING", "HOLDING"])
def test_no_call_takes_a_seed_that_a_clear_has_removed(
    stage: str, call: Callable[[SeedManager], Any]
) -> None:
    manager = grown()
    if stage == "HOLDING":
        manager.blend("a", steps=0, force=True)
    manager.host.clear()
    with pytest.raises(StageError, match=r"host\.clear.*'a'.*manager\.cull_all\(\)"):
        call(manager)
    assert list(manager.seeds) == ["a"]
    assert manager.seeds["a"].stage.name == stage
    manager.cull("a")
    manager.step()
    assert not manager.seeds


def test_a_manager_that_rests_hears_of_a_clear() -> None:
    manager = grown()
    manager.fossilize("a", force=True)
    for _ in range(3):
        manager.step()
    manager.host.clear()
    with pytest.raises(StageError, match=r"host\.clear.*'a'"):
        manager.step()
    assert manager.steps == 3


def test_a_run_is_not_loaded_without_its_optimizer(tmp_path: Path) -> None:
    manager = grown()
    manager.save(tmp_path / "run")
    manager.host.clear()
    says = re.escape("optimizers: expected AdamW, as in the checkpoint; got none")
    with pytest.raises(CheckpointError, match=says):
        SeedManager.load(tmp_path / "run", manager.host)


def test_a_measurement_puts_the_mode_of_each_module_back() -> None:
    manager = grown()
    manager.host.get_submodule("1").eval()
    before = [module.training for module in manager.host.modules()]

    def loss() -> Tensor:
        manager.host.eval()
        return manager.host(X).square().mean()

    manager.measure("a", loss)
    assert [module.training for module in manager.host.modules()] == before


ASSIGNED: dict[str, tuple[Any, str]] = {
    "alpha": (1.0, r"manager\.blend\(seed, to=..., steps=...\) moves it, manager\.at_alpha\(seed, ...\)"),
    "stage": (fxgraft.Stage.HOLDING, r"blend, cull and fossilize of the manager change it"),
    "paused": (True, r"manager\.pause\(seed\) and manager\.resume\(seed\)"),
    "spec": (None, "decided when it is germinated: cull it and germinate another"),
    "slot": ("0", "decided when it is germinated"),
    "name": ("b", "decided when it is germinated"),
    "hyper": ({"lr": 1.0}, "decided when it is germinated"),
    "module": (LAYER, "decided when it is germinated"),
    "trained_steps": (100, "the manager keeps it"),
    "loss_with": (0.0, r"manager\.measure\(seed, evaluate\)"),
    "contribution": (1.0, r"manager\.measure\(seed, evaluate\)"),
    "aplha": (1.0, "a Seed has no attribute 'aplha'"),
}


@pytest.mark.parametrize("name", ASSIGNED)
def test_the_record_of_a_seed_is_only_read(name: str) -> None:
    manager = grown()
    seed, (value, says) = manager.seeds["a"], ASSIGNED[name]
    before = snapshot(manager.host, X, manager._optimizers), repr(seed), dict(seed.to_dict())
    with pytest.raises(AttributeError, match=says):
        setattr(seed, name, value)
    assert (repr(seed), dict(seed.to_dict())) == before[1:]
    assert_same_bits(snapshot(manager.host, X, manager._optimizers), before[0], name)


def test_every_attribute_of_a_seed_is_only_read() -> None:
    seed = grown().seeds["a"]
    for name in [name for name in dir(seed) if not name.startswith("__")]:
        with pytest.raises(AttributeError, match=f"Seed.*'{name}'|{name} of seed 'a'"):
            setattr(seed, name, None)
        if name in seed.__dict__:
            with pytest.raises(AttributeError, match=name):
                delattr(seed, name)


def test_a_record_is_copied_and_pickled() -> None:
    seed = grown().seeds["a"]
    for made in (copy.deepcopy(seed), pickle.loads(pickle.dumps(seed))):
        assert made.to_dict() == seed.to_dict()


SETTINGS = ["optimizer", "schedulers", "strict", "sinks", "check_every", "gates", "cooldown", "metrics_every"]


@pytest.mark.parametrize("name", ["host", *SETTINGS])
def test_what_a_manager_is_made_with_is_only_read(name: str) -> None:
    manager = grown()
    with pytest.raises(AttributeError, match=rf"SeedManager\(\.\.\., {name}=\.\.\.\)"):
        setattr(manager, name, None)
