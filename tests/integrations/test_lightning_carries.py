"""Whatever reads or writes a file of Lightning's carries what grew, or says what to do."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fxgraft
from fxgraft import SeedManager, Stage
from fxgraft.errors import CheckpointError, StageError
from fxgraft.integrations.lightning import GrowCallback
from tests.harness import assert_same_bits, frozen

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:lightning"),
]

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 3, (24,), generator=torch.Generator().manual_seed(2))
BATCHES = 6
"""In an epoch."""


def traced(seed: int) -> fxgraft.Host:
    torch.manual_seed(seed)
    return fxgraft.trace(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)), (X[:4],))


class Two(pl.LightningModule):
    """Two hosts and a layer beside them, as in a GAN, with one optimizer each, or in one optimizer."""

    def __init__(self, optimizers: int = 3, decay: float = 0.9):
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = optimizers == 1
        self.first, self.second = traced(0), traced(1)
        self.head = nn.Linear(6, 3)

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.head(self.second(self.first(x))), y)

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = self.loss(batch)
        if not self.automatic_optimization:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
            for scheduler in self.lr_schedulers():
                scheduler.step()
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("loss", self.loss(batch))

    def predict_step(self, batch: Any, index: int) -> Tensor:
        return self.head(self.second(self.first(batch[0])))

    def configure_optimizers(self) -> Any:
        if self.automatic_optimization:
            return torch.optim.AdamW(self.parameters(), 1e-2)
        parts = self.second, self.head, self.first
        optimizers = [torch.optim.AdamW(part.parameters(), 1e-2) for part in parts]
        decay = self.hparams.decay
        return optimizers, [torch.optim.lr_scheduler.ExponentialLR(o, decay) for o in optimizers]


def grow_first(manager: SeedManager) -> None:
    if manager.steps == 2:
        manager.germinate("1", "mlp", name="a", hidden=4)
    if manager.steps == 4:
        manager.blend("a", to=0.5, steps=2)
        manager.germinate("1", "low_rank", name="b", rank=2)
    if manager.steps == 8:
        manager.fossilize("a")


def grow_second(manager: SeedManager) -> None:
    if manager.steps == 3:
        manager.germinate("1", "mlp", name="a", hidden=4)
        manager.germinate("1", "mlp", name="z", hidden=4)
    if manager.steps == 5:
        manager.cull("z")
        manager.blend("a", steps=20)


def loader(shuffle: bool = False) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    return DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=shuffle, generator=generator)


def callbacks(module: Two) -> list[GrowCallback]:
    return [GrowCallback(module.first, grow_first), GrowCallback(module.second, grow_second)]


def trainer(folder: Path, epochs: int, grow: list[Any], **options: Any) -> pl.Trainer:
    saver = ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}")
    return pl.Trainer(
        max_epochs=epochs, callbacks=[*grow, saver], accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip


def fit(
    folder: Path, epochs: int, optimizers: int = 3, resume: Any = None, turned: bool = False
) -> tuple[Two, list[GrowCallback]]:
    module = Two(optimizers)
    grow = callbacks(module)
    trainer(folder, epochs, grow[::-1] if turned else grow).fit(module, loader(), ckpt_path=resume)
    return module, grow


def lives(grow: list[GrowCallback]) -> list[Any]:
    managers = [callback.manager for callback in grow]
    assert all(managers)
    return [[(s.name, s.stage, s.alpha, s.trained_steps) for s in m.seeds.values()] for m in managers if m]


def moments(module: Two, grow: list[GrowCallback]) -> dict[str, Tensor]:
    names = {parameter: name for name, parameter in module.named_parameters()}
    found = {}
    for optimizer in {o for callback in grow for o in callback.manager.optimizers}:  # type: ignore[union-attr]
        for parameter, state in optimizer.state.items():
            found |= {f"{names[parameter]}.{key}": value for key, value in state.items()}
    return dict(sorted(found.items()))


def weights(module: nn.Module) -> dict[str, Tensor]:
    state = module.state_dict()
    return {name: state[name] for name in sorted(state) if not name.endswith("_structure")}


def predictions(module: Two) -> Tensor:
    return frozen(module.eval().predict_step((X, Y), 0))


@pytest.fixture(scope="module", params=[3, 1], ids=["an optimizer each", "one optimizer"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of three epochs: the folder of its checkpoints, module, callbacks, how many optimizers."""
    folder = tmp_path_factory.mktemp("whole")
    module, grow = fit(folder, 3, request.param)
    return folder, module, grow, request.param


# Two callbacks


@pytest.mark.parametrize(("epoch", "turned"), [(0, False), (1, False), (1, True)])
def test_two_hosts_go_on_bit_for_bit(whole: Any, epoch: int, turned: bool, tmp_path: Path) -> None:
    folder, module, grow, optimizers = whole
    assert [[name for name, *_ in seeds] for seeds in lives(grow)] == [["a", "b"], ["a"]]
    resumed, again = fit(tmp_path, 3, optimizers, folder / f"epoch={epoch}.ckpt", turned)
    assert lives(again) == lives(grow)
    assert_same_bits(weights(resumed), weights(module), "weights")
    assert_same_bits(moments(resumed, again), moments(module, grow), "moments")


@pytest.mark.parametrize("one", [0, 1])
def test_a_callback_that_is_missing_when_training_goes_on_is_reported(
    whole: Any, one: int, tmp_path: Path
) -> None:
    folder, _, _, optimizers = whole
    module = Two(optimizers)
    grow = callbacks(module)[one : one + 1]
    missing = ["second", "first"][one]
    with pytest.raises(CheckpointError, match=rf"GrowCallback\(module\.{missing}\)"):
        trainer(tmp_path, 3, grow).fit(module, loader(), ckpt_path=folder / "epoch=1.ckpt")


def test_without_any_callback_training_does_not_go_on(whole: Any, tmp_path: Path) -> None:
    folder, _, _, optimizers = whole
    run = trainer(tmp_path, 3, [])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match="different number of parameter groups"):
            run.fit(Two(optimizers), loader(), ckpt_path=folder / "epoch=1.ckpt")
    (said,) = [str(w.message) for w in told if "add the following callbacks" in str(w.message)]
    assert "GrowCallback(host at 'first')" in said


# Files that are read without training


def test_load_from_checkpoint_has_what_grew(whole: Any) -> None:
    folder, module, _, _ = whole
    loaded = Two.load_from_checkpoint(folder / "epoch=2.ckpt")
    assert_same_bits(predictions(loaded), predictions(module), "predictions")
    assert loaded.first.grafts().keys() == {"a", "b"}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("weights_only", [True, False])
def test_files_of_weights_alone_carry_it(strict: bool, weights_only: bool, tmp_path: Path) -> None:
    module = Two()
    run = trainer(tmp_path, 2, callbacks(module))
    run.fit(module, loader())
    run.save_checkpoint(tmp_path / "w.ckpt", weights_only=weights_only)
    loaded = Two.load_from_checkpoint(tmp_path / "w.ckpt", strict=strict)
    assert_same_bits(predictions(loaded), predictions(module), "predictions")


@pytest.mark.parametrize(("call", "again"), [("validate", True), ("test", False), ("predict", True)])
def test_evaluation_with_a_file_has_what_grew(call: str, again: bool, tmp_path: Path) -> None:
    """Also where the file is of another time than the module: from before growth, or with other seeds."""
    Two.test_step = Two.validation_step  # type: ignore[method-assign]
    module = Two()
    grow = callbacks(module)
    run = trainer(tmp_path, 3, grow)
    run.fit(module, loader())
    expected = {}
    for epoch in range(3):
        expected[epoch] = predictions(Two.load_from_checkpoint(tmp_path / f"epoch={epoch}.ckpt"))
    run.save_checkpoint(tmp_path / "last.ckpt")
    for epoch in (0, 2, 1):
        target = module if again else Two()
        evaluation = run if again else trainer(tmp_path, 3, callbacks(target))
        getattr(evaluation, call)(target, loader(), ckpt_path=tmp_path / f"epoch={epoch}.ckpt", **(
            {} if call == "predict" else {"verbose": False}
        ))  # fmt: skip
        assert_same_bits(predictions(target), expected[epoch], f"epoch {epoch}")
    if again:  # and the run goes on from there
        target.train()
        run.fit_loop.max_epochs = 4
        run.fit(module, loader(), ckpt_path=tmp_path / "last.ckpt")
        whole, _ = fit(tmp_path / "whole", 4)
        assert_same_bits(weights(module), weights(whole), "weights")


def test_a_file_from_before_growth_takes_it_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = Two()
    (tmp_path / "start").mkdir()
    run = trainer(tmp_path, 2, callbacks(module))
    run.strategy.connect(module)
    run.save_checkpoint(tmp_path / "start" / "x.ckpt", weights_only=True)
    plain = predictions(copy.deepcopy(module))
    module.train()
    run.fit(module, loader())
    assert module.first.grafts()
    run.validate(module, loader(), ckpt_path=tmp_path / "start" / "x.ckpt", verbose=False)
    assert_same_bits(predictions(module), plain, "predictions")
    assert "there were a, b; now there are none" in caplog.text


def test_a_module_without_hosts_refuses_what_grew(whole: Any) -> None:
    class Plain(Two):
        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **options)
            del self.first, self.second
            self.first = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
            self.second = copy.deepcopy(self.first)

    with pytest.raises(RuntimeError, match=r"Unexpected key.*first\._seeds\.a"):
        Plain.load_from_checkpoint(whole[0] / "epoch=2.ckpt")


def test_a_host_that_was_grown_without_the_callback_is_refused_when_read(tmp_path: Path) -> None:
    class Own(Two):
        def on_fit_start(self) -> None:
            SeedManager(self.first).germinate("1", "mlp", name="a")

    run = trainer(tmp_path, 1, [])
    run.fit(Own(), loader())
    for strict in (True, False):
        with pytest.raises(CheckpointError, match=r"1 seed \(a\), which the host has not"):
            Own.load_from_checkpoint(tmp_path / "epoch=0.ckpt", strict=strict)


def test_seeds_from_code_are_asked_for(tmp_path: Path) -> None:
    def code(manager: SeedManager) -> None:
        if manager.steps == 2:
            manager.germinate("1", nn.Linear(8, 8), name="own")

    class Given(Two):
        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **options)
            self.first.seed_blueprints["own"] = lambda slot: nn.Linear(8, 8)

    module = Two(1)
    trainer(tmp_path, 1, [GrowCallback(module.first, code)]).fit(module, loader())
    with pytest.raises(CheckpointError, match=r"'own' was germinated from code.*seed_blueprints"):
        Two.load_from_checkpoint(tmp_path / "epoch=0.ckpt")
    loaded = Given.load_from_checkpoint(tmp_path / "epoch=0.ckpt")
    assert_same_bits(predictions(loaded), predictions(module), "predictions")
    grow = GrowCallback(loaded.first)
    trainer(tmp_path, 2, [grow]).fit(loaded, loader(), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert grow.manager is not None
    assert grow.manager.seeds["own"].trained_steps == 2 * BATCHES - 2


# Training on


@pytest.mark.parametrize("how", ["again", "loaded"])
def test_another_training_leads_what_grew(how: str, tmp_path: Path) -> None:
    """Two calls of fit, and fit after load_from_checkpoint: new optimizers have everything once."""
    module, before = fit(tmp_path, 2)
    expected = lives(before)
    if how == "loaded":
        module = Two.load_from_checkpoint(tmp_path / "epoch=1.ckpt")
        grow = [GrowCallback(module.first), GrowCallback(module.second)]
    else:
        grow = before
        for callback in grow:
            callback._on_step = lambda manager: None
    out = predictions(module)
    module.train()
    run = trainer(tmp_path / "more", 1, grow)
    run.fit(module, loader())
    for optimizer in run.optimizers:
        placed = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert len(placed) == len(set(placed))
    everything = {id(p) for o in run.optimizers for g in o.param_groups for p in g["params"]}
    assert everything == {id(p) for p in module.parameters()}
    assert [[seed[:2] for seed in seeds] for seeds in lives(grow)] == [
        [seed[:2] for seed in seeds] for seeds in expected
    ]
    manager = grow[1].manager
    assert manager is not None
    assert manager.seeds["a"].alpha > expected[1][0][2], "the ramp goes on"
    assert not torch.equal(predictions(module), out)
    loaded = Two.load_from_checkpoint(tmp_path / "more" / "epoch=0.ckpt")
    assert_same_bits(predictions(loaded), predictions(module), "predictions")


def test_a_host_of_another_manager_is_refused(tmp_path: Path) -> None:
    module = Two(1)
    SeedManager(module.first).germinate("1", "mlp", name="a")
    with pytest.raises(StageError, match="seeds of another SeedManager"):
        trainer(tmp_path, 1, [GrowCallback(module.first)]).fit(module, loader())


def test_what_averages_weights_by_pairs_is_refused(tmp_path: Path) -> None:
    module = Two(1)
    grow = [GrowCallback(module.first), StochasticWeightAveraging(1e-2)]
    with pytest.raises(ValueError, match=r"StochasticWeightAveraging.*fxgraft\.averaging\.follow"):
        trainer(tmp_path, 1, grow).fit(module, loader())


def test_one_callback_for_each_host(tmp_path: Path) -> None:
    module = Two(1)
    with pytest.raises(ValueError, match="'first' has several"):
        trainer(tmp_path, 1, [GrowCallback(module.first), GrowCallback(module.first)]).fit(module, loader())


def test_steps_are_those_of_the_hosts_own_optimizer(tmp_path: Path) -> None:
    class Seldom(Two):
        def training_step(self, batch: Any, index: int) -> None:
            second, _, first = self.optimizers()
            self.manual_backward(self.loss(batch))
            second.step()
            if index % 3 == 2:
                first.step()

    module = Seldom()
    grow = [GrowCallback(module.first), GrowCallback(module.second)]
    trainer(tmp_path, 1, grow).fit(module, loader())
    assert [callback.manager.steps for callback in grow if callback.manager] == [BATCHES // 3, BATCHES]


def test_what_is_beside_the_host_is_clipped_with_it(tmp_path: Path) -> None:
    def germinate(manager: SeedManager) -> None:
        if manager.steps == 1:
            manager.germinate("1", "mlp", name="a")

    found = []
    for grow in (False, True):
        torch.manual_seed(0)
        module = Two(1)
        given = [GrowCallback(h, germinate) for h in (module.first, module.second)] if grow else []
        trainer(tmp_path / str(grow), 1, given, gradient_clip_val=0.01).fit(module, loader())
        found.append({name: value for name, value in weights(module).items() if "_seeds" not in name})
    assert_same_bits(found[1], found[0], "with seeds and without")


# Any order


@settings(
    max_examples=2 if settings().max_examples < 100 else settings().max_examples,
    suppress_health_check=[*settings().suppress_health_check, HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_set_up_goes_on(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Random growths, orders of callbacks, numbers of optimizers, moments of saving, ways of reading."""
    folder = tmp_path_factory.mktemp("any")
    optimizers = data.draw(st.sampled_from([1, 3]))
    plans = [
        data.draw(st.lists(st.tuples(st.integers(1, 9), st.sampled_from(["1", "2"]), st.sampled_from(
            ["mlp", "low_rank"]), st.booleans()), max_size=3))
        for _ in range(2)
    ]  # fmt: skip
    order = data.draw(st.permutations([0, 1]))
    epoch = data.draw(st.integers(0, 1))

    def act(plan: list[Any]) -> Any:
        def decide(manager: SeedManager) -> None:
            for i, (step, slot, blueprint, isolated) in enumerate(plan):
                if manager.steps == step:
                    manager.germinate(slot, blueprint, name=f"s{i}", isolated=isolated)
                if manager.steps == step + 2:
                    manager.blend(f"s{i}", to=0.5, steps=1)
                if manager.steps == step + 4 and manager.seeds[f"s{i}"].stage is Stage.HOLDING:
                    (manager.cull if i == 1 else manager.fossilize)(f"s{i}")

        return decide

    def run(name: str, resume: Path | None = None) -> tuple[Two, list[GrowCallback]]:
        torch.manual_seed(0)
        module = Two(optimizers)
        hosts = module.first, module.second
        grow = [GrowCallback(hosts[i], act(plans[i])) for i in (order if resume else range(2))]
        trainer(folder / name, 3, grow).fit(module, loader(), ckpt_path=resume)
        return module, sorted(grow, key=lambda callback: callback._path)

    module, grow = run("whole")
    file = folder / "whole" / f"epoch={epoch}.ckpt"
    resumed, again = run("resumed", file)
    assert lives(again) == lives(grow)
    assert_same_bits(weights(resumed), weights(module), "weights")
    assert_same_bits(moments(resumed, again), moments(module, grow), "moments")
    loaded = Two.load_from_checkpoint(folder / "whole" / "epoch=2.ckpt")
    assert_same_bits(predictions(loaded), predictions(module), "predictions")
