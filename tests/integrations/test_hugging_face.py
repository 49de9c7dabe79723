"""The real Trainer with default arguments germinates, evaluates, saves, resumes, and takes its best model."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, Trainer, TrainerCallback

import fxgraft
from fxgraft import SeedManager, Stage
from fxgraft.errors import CheckpointError, StageError
from fxgraft.integrations.hugging_face import FILE, GrowCallback
from tests.harness import assert_same_bits
from tests.integrations.trainers import MODELS, arguments, data, host, plain, trainer


def growing(slot: str, **options: Any) -> Callable[[SeedManager], None]:
    """A seed at step 1, blended from step 3 on."""

    def decide(manager: SeedManager) -> None:
        if manager.steps == 1:
            manager.germinate(slot, "mlp", name="a", hidden=3, **options)
        if manager.steps == 3:
            manager.blend("a", steps=2)

    return decide


def only_germinating(slot: str) -> Callable[[SeedManager], None]:
    def decide(manager: SeedManager) -> None:
        if manager.steps == 1:
            manager.germinate(slot, "mlp", name="a", hidden=3)

    return decide


@pytest.mark.parametrize("name", MODELS)
def test_a_seed_in_a_block_runs_and_the_host_is_trained_as_the_model_is(name: str, tmp_path: Path) -> None:
    """The Trainer turns the cache off and adds ``num_items_in_batch``: other calls than the traced one."""
    model, net, slot = plain(name), host(name), MODELS[name][1]
    alone, _ = trainer(name, tmp_path / "plain", model)
    expected = alone.train()
    run, callback = trainer(name, tmp_path / "host", net, only_germinating(slot))
    found = run.train()
    manager = callback.manager
    assert manager is not None
    assert manager.seeds["a"].trained_steps == 5
    assert {region.fallbacks for region in net.regions.values()} == {0}
    assert manager.seeds["a"].module.down.weight.abs().sum() > 0, "it was born with zeros there"
    assert found.training_loss == expected.training_loss
    weights = dict(model.state_dict())
    assert_same_bits({n: net.state_dict()[n] for n in weights}, weights, "trained as the plain model")
    assert run.evaluate()["eval_loss"] == alone.evaluate()["eval_loss"]
    ours, theirs = run.predict(data(name)[16:]), alone.predict(data(name)[16:])
    assert ours.metrics["test_loss"] == theirs.metrics["test_loss"]
    assert (ours.predictions == theirs.predictions).all()
    assert (ours.label_ids == theirs.label_ids).all()


def resumed_and_whole(name: str, tmp_path: Path, decide: Any, **options: Any) -> GrowCallback:
    net, again = host(name), host(name)
    whole, callback = trainer(name, tmp_path / "a", net, decide, save_steps=3, **options)
    whole.train()
    assert callback.manager is not None
    resumed, other = trainer(name, tmp_path / "a", again, decide, save_steps=3, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert other.manager is not None
    assert other.manager.steps == 6
    assert_same_bits(dict(again.state_dict()), dict(net.state_dict()), "resumed and whole")
    assert [repr(seed) for seed in other.manager.seeds.values()] == [
        repr(seed) for seed in callback.manager.seeds.values()
    ]
    return other


@pytest.mark.parametrize("name", MODELS)
def test_a_resumed_run_is_the_whole_run(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With dropout, tied weights, the optimizer's state and everything else that the defaults have."""
    with caplog.at_level(logging.WARNING):
        other = resumed_and_whole(name, tmp_path, growing(MODELS[name][1]))
    assert other.manager is not None
    assert other.manager.seeds["a"].stage is Stage.HOLDING
    assert "_seeds" not in caplog.text, "no key is called unexpected"
    assert [r.message for r in caplog.records if r.name == "fxgraft"] == []
    folder = tmp_path / "a" / "checkpoint-3"
    assert (folder / FILE).exists()
    assert not (folder / "optimizer.pt").exists(), "an optimizer with a seed's parameters is in our file"


def test_own_hyper_parameters_under_the_trainer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    slot = MODELS["llama"][1]
    with caplog.at_level(logging.WARNING, logger="fxgraft"):
        other = resumed_and_whole("llama", tmp_path, growing(slot, hyper={"lr": 5e-2}), save_only_model=True)
    assert not caplog.records
    assert other._optimizer is not None
    rates = [group["lr"] for group in other._optimizer.param_groups]
    assert rates[-1] == pytest.approx(5 * rates[0])


@pytest.mark.parametrize("name", MODELS)
def test_what_grew_runs_in_other_calls_than_those_of_training(name: str, tmp_path: Path) -> None:
    """Without labels, and without the number of items that the Trainer gives the loss."""
    net, slot = host(name), MODELS[name][1]

    def decide(manager: SeedManager) -> None:
        if manager.steps == 1:
            fossil(manager, slot, "f")
        if manager.steps == 2:
            manager.fossilize("f")

    run, _ = trainer(name, tmp_path, net, decide, max_steps=3)
    run.train()
    rows = [{"input_ids": row["input_ids"]} for row in data(name)[16:]]
    ids = torch.stack([row["input_ids"] for row in rows])
    logits = torch.from_numpy(run.predict(rows).predictions)
    assert_same_bits(net.eval()(input_ids=ids).logits, logits, "predicted and called")
    assert {region.fallbacks for region in net.regions.values()} == {0}
    model = plain(name).eval()
    model.config.use_cache = False
    model.load_state_dict({n: t for n, t in net.state_dict().items() if not n.startswith("_seeds.")})
    assert not torch.allclose(model(input_ids=ids).logits, logits), "what the model is without the fossil"
    alone = pickle.loads(pickle.dumps(fxgraft.unwrap(net)))
    assert_same_bits(alone(input_ids=ids).logits, logits, "unwrapped")
    assert not any(module._forward_pre_hooks for module in alone.modules())


class Scores:
    """A metric that is what a test wants, evaluation by evaluation."""

    def __init__(self, *values: float):
        self._values = iter(values)

    def __call__(self, predictions: Any) -> dict[str, float]:
        return {"score": next(self._values)}


class Snapshots(TrainerCallback):
    """What the host was at each checkpoint."""

    def __init__(self, net: fxgraft.Host):
        self._net = net
        self.states: dict[int, dict[str, torch.Tensor]] = {}

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.states[state.global_step] = {n: t.clone() for n, t in self._net.state_dict().items()}


BEST = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_steps": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "score",
    "greater_is_better": True,
}


def fossil(manager: SeedManager, slot: str, name: str) -> None:
    seed = manager.germinate(slot, "mlp", name=name, hidden=3)
    for parameter in seed.module.parameters():
        nn.init.constant_(parameter, 0.1)
    manager.blend(name, steps=1)


@pytest.mark.parametrize(("name", "best"), [("gpt2", 2), ("llama", 4), ("bert", 4), ("gpt2", 6)])
def test_the_best_model_has_what_had_grown_by_then(
    name: str, best: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing has grown at step 2, one fossil at step 4, two at step 6."""
    net, slot = host(name), MODELS[name][1]

    def decide(manager: SeedManager) -> None:
        if manager.steps in (2, 4):
            fossil(manager, slot, f"f{manager.steps}")
        if manager.steps in (3, 5):
            manager.fossilize(f"f{manager.steps - 1}")

    # The decision of step 2 comes before its checkpoint: germinated, and nothing felt of it.
    scores = Scores(*(1.0 if step == best else 0.0 for step in (2, 4, 6)), 0.0)
    run, callback = trainer(name, tmp_path, net, decide, also={"compute_metrics": scores}, **BEST)
    snapshots = Snapshots(net)
    run.add_callback(snapshots)
    with caplog.at_level(logging.WARNING):
        run.train()
    manager = callback.manager
    assert manager is not None
    assert manager.steps == best
    expected = {2: ["f2"], 4: ["f2", "f4"], 6: ["f2", "f4"]}[best]
    assert list(manager.seeds) == expected
    assert_same_bits(dict(net.state_dict()), snapshots.states[best], "the best checkpoint")
    assert "_seeds" not in caplog.text


def test_training_goes_on_after_the_best_model_was_loaded(tmp_path: Path) -> None:
    net, slot = host("gpt2"), MODELS["gpt2"][1]
    scores = Scores(0.0, 1.0, 0.0, 0.0, 0.0, 2.0)
    run, callback = trainer(
        "gpt2", tmp_path, net, growing(slot, hyper={"lr": 3e-2}), also={"compute_metrics": scores}, **BEST
    )
    run.train()
    assert callback.manager is not None
    assert callback.manager.steps == 4
    run.train()
    assert callback.manager.steps == 10
    assert callback.manager.seeds["a"].stage is Stage.HOLDING
    assert run.optimizer.state[next(callback.manager.seed_parameters())]["step"] == 9, "with its moments"
    rates = [group["lr"] for group in run.optimizer.param_groups]
    assert rates[-1] == pytest.approx(3 * rates[0]), "the new schedule has the group of the seed"


def test_resuming_in_the_process_that_was_trained(tmp_path: Path) -> None:
    """The host has the seeds of step 6, and is brought back to those of step 3."""
    net = host("llama")
    run, callback = trainer("llama", tmp_path, net, growing(MODELS["llama"][1]), save_steps=3)
    run.train()
    expected = {n: t.clone() for n, t in net.state_dict().items()}
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert callback.manager is not None
    assert callback.manager.steps == 6
    assert_same_bits(dict(net.state_dict()), expected, "once more")


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_what_the_trainer_saves_is_carried_or_refused(name: str, tmp_path: Path) -> None:
    net, slot = host(name), MODELS[name][1]
    run, _ = trainer(name, tmp_path / "run", net, growing(slot))
    run.save_model(str(tmp_path / "before"))
    kind = type(plain(name))
    before = kind.from_pretrained(tmp_path / "before")
    assert_same_bits(dict(before.state_dict()), dict(plain(name).state_dict()), "written and read")
    run.train()
    run.save_model(str(tmp_path / "grown"))
    for folder in (tmp_path / "grown", tmp_path / "run" / "checkpoint-6"):
        for read in (kind.from_pretrained, AutoModel.from_pretrained):
            with pytest.raises(ValueError, match=r"this model has grown.*load_file"):
                read(folder)
    again = host(name, use_cache=False)
    again.load_state_dict(load_file(tmp_path / "grown" / "model.safetensors"), strict=False)
    state = dict(net.state_dict())
    assert any(key.startswith("_seeds.a.") for key in state)
    assert_same_bits(dict(again.state_dict()), state, "carried")
    evaluating, _ = trainer(name, tmp_path / "again", again)
    assert evaluating.evaluate()["eval_loss"] == run.evaluate()["eval_loss"]
    assert {region.fallbacks for region in again.regions.values()} == {0}


def test_a_model_that_is_not_of_transformers(tmp_path: Path) -> None:
    """Its columns and labels are those of its own signature, and its weights carry what grew."""

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, 2)

        def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = self.head(self.body(inputs))
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    def traced() -> fxgraft.Host:
        torch.manual_seed(0)
        example = {"inputs": torch.randn(2, 6), "labels": torch.tensor([0, 1])}
        return fxgraft.trace(Classifier(), (), example)

    rows = [{"inputs": torch.full((6,), i / 8), "labels": i % 2, "more": i} for i in range(16)]
    net = traced()
    callback = GrowCallback(net, growing("body.1"))
    run = Trainer(
        net, arguments(tmp_path, save_steps=3), train_dataset=rows, eval_dataset=rows, callbacks=[callback]
    )
    run.train()
    assert run.evaluate()["eval_loss"] > 0
    again = traced()
    other = GrowCallback(again, growing("body.1"))
    Trainer(again, arguments(tmp_path), train_dataset=rows, callbacks=[other]).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-3")
    )
    assert_same_bits(dict(again.state_dict()), dict(net.state_dict()), "resumed and whole")
    loaded = traced()
    loaded.load_state_dict(load_file(tmp_path / "checkpoint-6" / "model.safetensors"))
    assert_same_bits(dict(loaded.state_dict()), dict(net.state_dict()), "grown from the weights")


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    model, net = plain("gpt2"), host("gpt2")
    options = {"gradient_accumulation_steps": 2, "max_steps": 3}
    expected = trainer("gpt2", tmp_path / "a", model, **options)[0].train()
    run, callback = trainer("gpt2", tmp_path / "b", net, only_germinating(MODELS["gpt2"][1]), **options)
    assert run.train().training_loss == expected.training_loss
    assert callback.manager is not None
    assert callback.manager.steps == 3


def test_an_isolated_seed_is_not_felt_where_gradients_are_clipped(tmp_path: Path) -> None:
    """The trainer's own clipping (1 by default) takes one norm over host and seeds."""
    grown, loose = host("llama"), plain("llama")
    alone = plain("llama")
    run, _ = trainer("llama", tmp_path / "a", grown, only_germinating(MODELS["llama"][1]), max_grad_norm=0.05)
    run.train()
    assert run.args.max_grad_norm == 0.05, "given back"
    trainer("llama", tmp_path / "b", alone, max_grad_norm=0.05)[0].train()
    trainer("llama", tmp_path / "c", loose, max_grad_norm=0.0)[0].train()
    expected = dict(alone.state_dict())
    assert_same_bits(
        {name: grown.state_dict()[name] for name in expected}, expected, "with and without a seed"
    )
    assert not torch.equal(loose.lm_head.weight, alone.lm_head.weight)


def test_a_run_that_failed_leaves_the_clipping_as_it_was(tmp_path: Path) -> None:
    def fail(manager: SeedManager) -> None:
        raise RuntimeError("out of ideas")

    run, callback = trainer("llama", tmp_path, host("llama"), fail, max_grad_norm=0.5, max_steps=2)
    with pytest.raises(RuntimeError, match="out of ideas"):
        run.train()
    assert run.args.max_grad_norm == 0.5
    saved = pickle.loads(pickle.dumps(run.args)).max_grad_norm
    assert (type(saved), saved) == (float, 0.5), "as in training_args.bin"
    with_ours, alone = plain("llama"), plain("llama")
    other, _ = trainer("llama", tmp_path / "b", with_ours, max_grad_norm=0.5, max_steps=2)
    other.args.max_grad_norm = run.args.max_grad_norm
    other.train()
    trainer("llama", tmp_path / "c", alone, max_grad_norm=0.5, max_steps=2)[0].train()
    assert_same_bits(dict(with_ours.state_dict()), dict(alone.state_dict()), "another trainer clips")
    callback._on_step = lambda manager: None
    run.train()
    assert run.args.max_grad_norm == 0.5, "taken over a second time, and given back"
    assert type(run.args.max_grad_norm) is float


def test_a_checkpoint_without_our_file_is_refused(tmp_path: Path) -> None:
    run, _ = trainer("llama", tmp_path, host("llama"), save_steps=3, max_steps=3)
    run.train()
    (tmp_path / "checkpoint-3" / FILE).unlink()
    with pytest.raises(CheckpointError, match="was not saved with this callback"):
        trainer("llama", tmp_path, host("llama"))[0].train(resume_from_checkpoint=True)


def test_a_checkpoint_elsewhere(tmp_path: Path) -> None:
    """A callback is not told where the trainer resumes from: it is refused to go on with another run."""
    slot = MODELS["llama"][1]
    short: dict[str, Any] = {"max_steps": 2}
    for folder, rate in (("a", 1e-2), ("b", 1e-3)):
        run, _ = trainer(
            "llama", tmp_path / folder, host("llama"), growing(slot), learning_rate=rate, **short
        )
        run.train()
    elsewhere = str(tmp_path / "a" / "checkpoint-2")
    run, _ = trainer("llama", tmp_path / "b", host("llama"), **short)
    with pytest.raises(CheckpointError, match=r"another run.*resume_from_checkpoint"):
        run.train(resume_from_checkpoint=elsewhere)
    short["resume_from_checkpoint"] = elsewhere
    run, callback = trainer("llama", tmp_path / "c", host("llama"), **short)
    run.train(resume_from_checkpoint=elsewhere)
    assert callback.manager is not None
    assert list(callback.manager.seeds) == ["a"]


def test_a_seed_of_code_that_the_best_model_would_lack_is_told_of_at_the_first_checkpoint(
    tmp_path: Path,
) -> None:
    def grow(manager: SeedManager) -> None:
        if manager.steps == 1:
            manager.germinate(MODELS["llama"][1], lambda slot: nn.Linear(16, 16), name="a")

    scores = {"compute_metrics": Scores(*range(9))}
    net = host("llama")
    with pytest.raises(CheckpointError, match=r"host\.seed_blueprints\['a'\]"):
        trainer("llama", tmp_path / "a", net, grow, also=scores, **BEST)[0].train()
    net = host("llama")
    net.seed_blueprints["a"] = lambda slot: nn.Linear(16, 16)
    run, callback = trainer("llama", tmp_path / "b", net, grow, also=scores, **BEST)
    run.train()
    assert callback.manager is not None
    assert list(callback.manager.seeds) == ["a"]


def test_another_model_and_strange_seeds_are_refused(tmp_path: Path) -> None:
    run, _ = trainer("llama", tmp_path, host("llama"))
    run.add_callback(GrowCallback(host("llama")))
    with pytest.raises(ValueError, match="expected the host that the Trainer trains"):
        run.train()
    net = host("llama")
    SeedManager(net).germinate(MODELS["llama"][1], "mlp", name="s")
    with pytest.raises(StageError, match="another SeedManager"):
        trainer("llama", tmp_path, net)[0].train()
    with pytest.raises(CheckpointError, match=r"expected trainer\.save_model"):
        net.save_pretrained(tmp_path / "strange")


def test_a_host_of_a_peft_model_is_refused_before_training(tmp_path: Path) -> None:
    example = {key: value[None] for key, value in data("gpt2")[0].items()}
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    net = fxgraft.trace(peft.get_peft_model(plain("gpt2"), config), (), example)
    run = Trainer(net, arguments(tmp_path), train_dataset=data("gpt2"), callbacks=[GrowCallback(net)])
    with pytest.raises(
        ValueError, match="expected a host of a model of transformers; got one of a PeftModel"
    ):
        run.train()
