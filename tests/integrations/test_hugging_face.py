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
    step = manager._reporter.step
    if step == 1:
        manager.germinate("transformer.h.0.mlp.act", "low_rank", name="a", rank=2)
    if step == 3:
        manager.blend("a", steps=4)


def trainer(folder: Path, steps: int, net: fxgraft.Host, **options: Any) -> tuple[Trainer, GrowCallback]:
    callback = GrowCallback(net, decide)
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
    assert callback.manager._reporter.step == 3


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="save_only_model=True"):
        trainer(tmp_path, 2, host(), save_only_model=False)[0].train()
    net = host()
    run, _ = trainer(tmp_path / "b", 5, net)
    run.train()
    (tmp_path / "b" / "checkpoint-5" / FILE).unlink()
    with pytest.raises(CheckpointError, match="was not saved with this callback"):
        trainer(tmp_path / "b", 8, host())[0].train(resume_from_checkpoint=True)
