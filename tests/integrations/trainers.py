"""Tiny models of transformers, their data, and Trainers with arguments as near to the defaults as can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

import fxgraft
from fxgraft.integrations.hugging_face import GrowCallback

SIZE = {"vocab_size": 40, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
SMALL = {**SIZE, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def gpt2() -> nn.Module:
    """Tied weights, dropout, a cache."""
    return GPT2LMHeadModel(GPT2Config(**SIZE, n_positions=8, n_embd=16, n_layer=2, n_head=2))


def llama() -> nn.Module:
    """Untied weights, a cache."""
    return LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2, max_position_embeddings=8))


def bert() -> nn.Module:
    """A classifier, with dropout."""
    return BertForSequenceClassification(BertConfig(**SMALL, max_position_embeddings=8))


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "gpt2": (gpt2, "transformer.h.0.ln_1"),
    "llama": (llama, "model.layers.0.input_layernorm"),
    "bert": (bert, "bert.encoder.layer.0.attention.output.dense"),
}
"""What makes the model, and a slot inside of a block."""

_IDS = torch.randint(1, 40, (24, 8), generator=torch.Generator().manual_seed(1))


def data(name: str) -> list[dict[str, torch.Tensor]]:
    """Rows with columns that a model of that kind takes."""
    labels = (_IDS[:, 0] % 2) if name == "bert" else _IDS
    return [{"input_ids": row, "labels": label} for row, label in zip(_IDS, labels, strict=True)]


def plain(name: str) -> nn.Module:
    """A model with the weights that all of its kind have here."""
    torch.manual_seed(0)
    return MODELS[name][0]()


def host(name: str, use_cache: bool = True) -> fxgraft.Host:
    """Traced as one would: with the configuration as it is, and a batch of the data."""
    model = plain(name)
    model.config.use_cache = use_cache  # True is the default
    batch = {key: torch.stack([row[key] for row in data(name)[:2]]) for key in ("input_ids", "labels")}
    return fxgraft.trace(model, (), batch)


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    """The defaults, but for where and how long."""
    given: dict[str, Any] = {
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "learning_rate": 1e-2,
    }
    return TrainingArguments(str(folder), **{**given, **options})


def trainer(
    name: str,
    folder: Path,
    net: nn.Module,
    on_step: Any = None,
    *,
    given: Mapping[str, Any] = {},
    also: Mapping[str, Any] = {},
    **options: Any,
) -> tuple[Trainer, GrowCallback]:
    """A trainer of a host with a callback, or of a plain model without.

    Args:
        name: of the kind of model.
        folder: for checkpoints.
        net: host or model.
        on_step: of the callback.
        given: options of the callback.
        also: options of the Trainer.
        **options: of the arguments.
    """
    callback = GrowCallback(net, on_step or (lambda manager: None), **given) if _is_host(net) else None
    rows = data(name)
    found = Trainer(
        net,
        arguments(folder, **options),
        train_dataset=rows[:16],
        eval_dataset=rows[16:],
        callbacks=[callback] if callback else [],
        **also,
    )
    return found, callback  # type: ignore[return-value]


def _is_host(net: nn.Module) -> bool:
    return isinstance(net, fxgraft.Host)
