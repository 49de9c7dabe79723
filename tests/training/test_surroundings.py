"""What a training loop meets: frozen norms, optimizers without gradients, schedulers by a metric."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxgraft
from fxgraft.training import Trainer, TrainingConfig, evaluate
from tests.networks import NormNet
from tests.training.test_training import batches, fresh, held_out


def frozen_norm(host: nn.Module) -> nn.Module:
    return next(m for m in host.modules() if isinstance(m, nn.modules.batchnorm._NormBase))


def test_an_evaluation_leaves_each_module_in_its_mode():
    host, _ = fresh()
    frozen_norm(host).eval()
    before = [module.training for module in host.modules()]
    evaluate(host, held_out(), F.cross_entropy)
    assert [module.training for module in host.modules()] == before
    assert True in before
    assert False in before
    host.eval()
    evaluate(host, held_out(), F.cross_entropy)
    assert not any(module.training for module in host.modules())


def test_a_norm_that_was_frozen_stays_so_for_a_whole_training():
    host, optimizer = fresh()
    frozen_norm(host).eval()
    statistics = frozen_norm(host).running_mean.clone()
    trainer = Trainer(host, optimizer, F.cross_entropy, TrainingConfig(epochs=2), validation=held_out)
    trainer.fit(batches)
    assert torch.equal(frozen_norm(host).running_mean, statistics)
    host.eval()
    trainer.progress.epoch = 0
    trainer.fit(batches)
    assert host.training  # a model in eval mode as a whole is to be trained


def test_float16_with_an_optimizer_for_seeds_that_has_none_yet():
    torch.manual_seed(0)
    host = fxgraft.trace(NormNet(4, 6, 3), (torch.randn(8, 4),))
    optimizers = [torch.optim.AdamW(host.parameters(), 1e-2), torch.optim.AdamW([{"params": []}], 1e-3)]
    config = TrainingConfig(epochs=1, autocast=torch.float16, clip_norm=1.0)
    trainer = Trainer(host, optimizers, F.cross_entropy, config)
    trainer.step(*next(batches(0)))
    assert optimizers[0].state
    trainer.manager.germinate("norm", "mlp", hidden=4)
    for batch in batches(1):
        assert trainer.step(*batch) < 10


@pytest.mark.parametrize("validated", [True, False])
def test_a_scheduler_by_a_metric_is_stepped_after_each_epoch(validated: bool):
    host, optimizer = fresh()
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.9)
    options = {"validation": held_out} if validated else {}
    trainer = Trainer(
        host, optimizer, F.cross_entropy, TrainingConfig(epochs=3), schedulers=[scheduler], **options
    )
    reports = trainer.fit(batches)
    assert scheduler.last_epoch == 3
    assert optimizer.param_groups[0]["lr"] < 1e-2
    losses = [report.validation if validated else report.loss for report in reports]
    assert scheduler.best in losses
