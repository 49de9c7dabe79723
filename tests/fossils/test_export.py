"""``torch.export`` of what was grown: the program computes what the host computes."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import transformers as T
from torch import nn

import fxgraft
from tests.fossils.test_unwrap import TwoConvBlocks, fossil
from tests.harness import assert_same_bits
from tests.hosts.hosts import Given
from tests.hosts.transformer_models import MODELS


def cnn() -> Given:
    return Given(TwoConvBlocks(), (torch.randn(2, 3, 8, 8),))


def mlp() -> Given:
    return Given(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (torch.randn(2, 6),))


def gpt2() -> Given:
    """With attention that makes its mask in the example as it does in an export."""
    config = T.GPT2Config(
        vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2
    )
    config._attn_implementation = "eager"
    ids = torch.randint(3, 64, (2, 7))
    return Given(T.GPT2LMHeadModel(config), (), {"input_ids": ids, "use_cache": False})


def bert() -> Given:
    return MODELS["bert"]()


PLACES: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "cnn": [
        ("blocks.0.relu", "mlp", {"to": 0.5}),
        ("blocks.1", "squeeze_excite", {"mode": "convex"}),
        ("blocks.1.relu", "conv_depthwise", {"mode": "gated", "to": 0.5}),
        ("stem", "attention", {}),
    ],
    "mlp": [("1", "mlp", {}), ("0", "low_rank", {"mode": "convex", "to": 0.5})],
    "gpt2": [
        ("transformer.h.0.mlp.c_fc", "low_rank", {}),
        ("transformer.h.1.attn.c_proj", "mlp", {"to": 0.5}),
        ("transformer.h.1", "attention", {}),
    ],
    "bert": [
        ("bert.encoder.layer.0.intermediate.dense", "low_rank", {}),
        ("bert.encoder.layer.1.output", "attention", {"to": 0.5}),
        ("bert.encoder.layer.1.attention.self.query", "mlp", {}),
    ],
}


def grown(name: str) -> tuple[fxgraft.Host, Given]:
    given: Given = {"cnn": cnn, "mlp": mlp, "gpt2": gpt2, "bert": bert}[name]()
    host = fxgraft.trace(given.model, given.args, given.kwargs)
    manager = fxgraft.SeedManager(host)
    for slot, blueprint, options in PLACES[name]:
        fossil(manager, slot, blueprint, **options)
    return host.eval(), given  # type: ignore[return-value]


def outputs(out: Any) -> Any:
    return out.logits if hasattr(out, "logits") else out


@pytest.mark.parametrize("plain", [False, True], ids=["host", "unwrapped"])
@pytest.mark.parametrize("name", list(PLACES))
def test_the_program_computes_what_the_host_computes(name: str, plain: bool) -> None:
    host, given = grown(name)
    expected = outputs(host(*given.args, **given.kwargs))
    without = outputs(given.model.eval()(*given.args, **given.kwargs))
    assert not torch.equal(expected, without)
    module = fxgraft.unwrap(host) if plain else host
    program = torch.export.export(module, given.args, given.kwargs)
    assert_same_bits(outputs(program.module()(*given.args, **given.kwargs)), expected)
    assert len(list(program.parameters())) == len(list(host.named_parameters(remove_duplicate=False)))


@pytest.mark.parametrize("plain", [False, True], ids=["host", "unwrapped"])
def test_with_a_dynamic_batch(plain: bool) -> None:
    host, given = grown("cnn")
    module = fxgraft.unwrap(host) if plain else host
    shapes: Any = ({0: torch.export.Dim("batch", min=2)},)
    program = torch.export.export(module, given.args, dynamic_shapes=shapes)
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(program.module()(x), host(x))


@pytest.mark.parametrize("plain", [False, True], ids=["host", "unwrapped"])
def test_no_program_without_the_fossils(plain: bool, caplog: pytest.LogCaptureFixture) -> None:
    """SDPA attention needs no mask in the example and is given one in an export: another form of call."""
    given = MODELS["gpt2"]()
    kwargs = {**given.kwargs, "use_cache": False}
    host = fxgraft.trace(given.model, (), kwargs)
    fossil(fxgraft.SeedManager(host), "transformer.h.1.attn.c_proj", "mlp")
    module = fxgraft.unwrap(host) if plain else host
    with caplog.at_level(logging.ERROR), pytest.raises(Exception, match="would be another model"):
        torch.export.export(module.eval(), (), kwargs)
