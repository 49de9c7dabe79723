"""The real Trainer germinates, blends, saves and resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import fxgraft
from fxgraft import SeedManager, Stage
from fxgraft.errors import CheckpointError
from fxgraft.integrations.hugging_face import FILE, GrowCallback
from tests.harness import assert_same_bits


def host() -> fxgraft.Host:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=40, n_positions=8, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="eager",
        tie_word_embeddings=False,
    )  # fmt: skip
    ids = torch.randint(0, 40, (2, 8))
    return fxgraft.trace(GPT2LMHeadModel(config), (), {"input_ids": ids, "labels": ids})


DATA = [
    {"input_ids": row, "labels": row}
    for row in torch.randint(0, 40, (64, 8), generator=torch.Generator().manual_seed(1))
]


def decide(manager: SeedManager) -> None:
    step = manager.steps
    if step == 1:
        manager.germinate("transformer.h.0.mlp.act", "low_rank", name="a", rank=2)
    if step == 3:
        manager.blend("a", steps=4)


def trainer(
    folder: Path, steps: int, net: fxgraft.Host, on_step: Any = decide, **options: Any
) -> tuple[Trainer, GrowCallback]:
    callback = GrowCallback(net, on_step)
    arguments: dict[str, Any] = {
        "max_steps": steps,
        "per_device_train_batch_size": 4,
        "save_steps": 5,
        "save_only_model": True,
        "remove_unused_columns": False,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        **options,
    }
    found = Trainer(
        net, TrainingArguments(str(folder), **arguments), train_dataset=DATA, callbacks=[callback]
    )
    found.model_accepts_loss_kwargs = False  # as docs/integrations.md says
    return found, callback


def test_a_trainer_grows_saves_and_resumes(tmp_path: Path) -> None:
    net = host()
    whole, callback = trainer(tmp_path / "whole", 8, net)
    whole.train()
    assert callback.manager is not None
    assert callback.manager.seeds["a"].stage is Stage.HOLDING
    assert (tmp_path / "whole" / "checkpoint-5" / FILE).exists()
    again = host()
    resumed, other = trainer(tmp_path / "whole", 8, again)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert other.manager is not None
    assert other.manager.seeds["a"].stage is Stage.HOLDING
    assert_same_bits(dict(again.state_dict()), dict(net.state_dict()), "resumed and whole")


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    net = host()
    run, callback = trainer(tmp_path, 3, net, gradient_accumulation_steps=2)
    run.train()
    assert callback.manager is not None
    assert callback.manager.steps == 3


def test_an_isolated_seed_is_not_felt_where_gradients_are_clipped(tmp_path: Path) -> None:
    """The trainer's own clipping (1 by default) takes one norm over host and seeds."""

    def grow(manager: SeedManager) -> None:
        if not manager.seeds:
            manager.germinate("transformer.h.0.mlp.act", "mlp", name="a")

    grown, plain, loose = host(), host(), host()
    run, callback = trainer(tmp_path / "a", 4, grown, grow, max_grad_norm=0.05)
    run.train()
    assert callback.manager is not None
    assert callback.manager.seeds["a"].trained_steps == 3
    assert run.args.max_grad_norm == 0.05, "given back"
    trainer(tmp_path / "b", 4, plain, lambda manager: None, max_grad_norm=0.05)[0].train()
    trainer(tmp_path / "c", 4, loose, lambda manager: None, max_grad_norm=0.0)[0].train()
    expected = dict(plain.state_dict())
    assert_same_bits(
        {name: grown.state_dict()[name] for name in expected}, expected, "with and without a seed"
    )
    name = "transformer.h.0.mlp.c_fc.weight"
    assert not torch.equal(loose.state_dict()[name], expected[name])


def test_a_run_that_failed_leaves_the_clipping_as_it_was(tmp_path: Path) -> None:
    def fail(manager: SeedManager) -> None:
        raise RuntimeError("out of ideas")

    refused, _ = trainer(tmp_path / "a", 2, host(), save_only_model=False, max_grad_norm=0.5)
    with pytest.raises(ValueError, match="save_only_model"):
        refused.train()
    assert refused.args.max_grad_norm == 0.5
    run, callback = trainer(tmp_path / "b", 2, host(), fail, max_grad_norm=0.5)
    with pytest.raises(RuntimeError, match="out of ideas"):
        run.train()
    callback._on_step = lambda manager: None
    run.train()
    assert run.args.max_grad_norm == 0.5, "taken over a second time, and given back"


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="save_only_model=True"):
        trainer(tmp_path, 2, host(), save_only_model=False)[0].train()
    net = host()
    run, _ = trainer(tmp_path / "b", 5, net)
    run.train()
    (tmp_path / "b" / "checkpoint-5" / FILE).unlink()
    with pytest.raises(CheckpointError, match="was not saved with this callback"):
        trainer(tmp_path / "b", 8, host())[0].train(resume_from_checkpoint=True)
