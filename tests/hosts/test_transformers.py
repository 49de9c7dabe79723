"""Hugging Face models: captured to the bit, grown inside of attention, used by the library's own tools."""

from __future__ import annotations

import pytest
import torch
import transformers

import fxgraft
from fxgraft.util.bits import same_bits
from tests.hosts.hosts import Given, assert_same, check, ran
from tests.hosts.transformer_models import MODELS

pytestmark = pytest.mark.usefixtures("quiet_transformers")

# What has no graph, and why. Everything else of these models has.
OF_CACHE = "branches on the size of what update() of"
OPAQUE = {
    "gpt2": {
        "transformer": "makes a DynamicCache object",
        "transformer.h.0.attn": OF_CACHE,
        "transformer.h.1.attn": OF_CACHE,
    },
    "llama": {
        "model": "makes a DynamicCache object",
        "model.layers.0.self_attn": OF_CACHE,
        "model.layers.1.self_attn": OF_CACHE,
    },
    "qwen2": {
        "model": "makes a DynamicCache object",
        "model.layers.0.self_attn": OF_CACHE,
        "model.layers.1.self_attn": OF_CACHE,
    },
    "t5": {
        "decoder": "makes a EncoderDecoderCache object",
        "decoder.block.0.layer.0.SelfAttention": OF_CACHE,
    },
    "mamba": {
        "backbone": "makes a DynamicCache object",
        "backbone.layers.0": "takes another path in train mode",
        "backbone.layers.1": "takes another path in train mode",
        "backbone.layers.0.mixer": "as a Python integer",
        "backbone.layers.1.mixer": "as a Python integer",
        "backbone.layers.0.mixer.act": "was not called",
        "backbone.layers.1.mixer.act": "was not called",
    },
}

# A slot inside of attention, one in an MLP, one behind a block or what comes next to it.
SLOTS = {
    "gpt2": ("transformer.h.0.attn.c_attn.view_1", "transformer.h.1.mlp.act", "transformer.h.1.add_1"),
    "llama": (
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.mlp.down_proj",
        "model.layers.0.add_1",
    ),
    "qwen2": ("model.layers.0.self_attn.v_proj", "model.layers.1.mlp.up_proj", "lm_head"),
    "bert": (
        "bert.encoder.layer.0.attention.self.query",
        "bert.encoder.layer.1.intermediate",
        "bert.encoder.layer.0",
    ),
    "vit": None,
    "t5": ("encoder.block.0.layer.0.SelfAttention.q", None, None),
    "mamba": ("backbone.layers.0.norm.mul", None, None),
    "distilbert": None,
    "roberta": None,
    "clip": None,
}


def _slots(name: str, host: fxgraft.Host) -> list[str]:
    named = [slot for slot in SLOTS[name] or () if slot]
    if not named:
        found = [slot for slot in host.slots if len(host.slots[slot].shape) > 1]
        named = [found[len(found) // 5], found[len(found) // 2], found[-2]]
    return named


@pytest.mark.parametrize("name", MODELS)
def test_capture_to_the_bit(name):
    host = check(MODELS[name]())
    opaque = OPAQUE.get(name, {})
    assert host.opaque.keys() == opaque.keys()
    for where, reason in opaque.items():
        assert reason in host.rejected[where]


@pytest.mark.parametrize("name", MODELS)
def test_seeds_change_nothing_until_they_blend_and_nothing_after_a_cull(name):
    given = MODELS[name]()
    host = fxgraft.trace(given.model, given.args, given.kwargs)
    manager = fxgraft.SeedManager(host)
    buffers = {n: b.clone() for n, b in given.model.named_buffers()}
    before = {mode: ran(host, given, buffers, mode, given.model) for mode in (True, False)}
    code = {n: r.code for n, r in host.regions.items()}
    seeds = [
        manager.germinate(slot, ("low_rank", "mlp")[i % 2], name=f"s{i}")
        for i, slot in enumerate(_slots(name, host))
    ]
    for mode in (True, False):
        assert_same(ran(host, given, buffers, mode, given.model), before[mode], f"TRAINING, {mode}")
    for seed in seeds:
        for parameter in seed.module.parameters():
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(3))
        manager.blend(seed, to=0.5, steps=1)
    manager.step()
    blended = ran(host, given, buffers, False, given.model)
    assert not same_bits(blended["out"], before[False]["out"])
    for seed in seeds:
        manager.cull(seed)
    for mode in (True, False):
        assert_same(ran(host, given, buffers, mode, given.model), before[mode], f"CULLED, {mode}")
    assert {n: r.code for n, r in host.regions.items()} == code


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_generate_with_a_live_seed(name):
    given = MODELS[name]()
    host = fxgraft.trace(given.model, given.args, given.kwargs).eval()
    prompt = given.kwargs["input_ids"][:, :4]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = given.model.eval().generate(prompt, **options)
    manager = fxgraft.SeedManager(host)
    seed = manager.germinate(SLOTS[name][1], "low_rank")
    assert torch.equal(host.generate(prompt, **options), expected)
    for parameter in seed.module.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(3))
    manager.blend(seed, steps=1)
    manager.step()
    grown = host.generate(prompt, **options)
    # Decoding with a cache computes what a pass over the whole sequence does: the seed ran in both.
    again = host(input_ids=grown).logits[:, 3:-1].argmax(-1)
    assert torch.equal(again, grown[:, 4:])
    assert not same_bits(host(input_ids=grown).logits, given.model(input_ids=grown).logits)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "vit"])
def test_hidden_states_and_attributes(name):
    given = MODELS[name]()
    host = fxgraft.trace(given.model, given.args, given.kwargs).eval()
    given.model.eval()
    kwargs = {**given.kwargs, "output_hidden_states": True}
    expected = given.model(**kwargs)
    got = host(**kwargs)
    assert type(got) is type(expected)
    assert len(got.hidden_states) == len(expected.hidden_states) > 2
    assert same_bits(got.hidden_states, expected.hidden_states)
    assert host.config is given.model.config


def test_save_pretrained_through_the_host(tmp_path):
    given = MODELS["gpt2"]()
    host = fxgraft.trace(given.model, given.args, given.kwargs)
    host.save_pretrained(tmp_path)
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    assert same_bits(dict(again.state_dict()), dict(given.model.state_dict()))


def test_compiled_whole_with_a_seed():
    given = MODELS["vit"]()
    given = Given(given.model.eval(), (given.kwargs["pixel_values"],))
    host = fxgraft.trace(given.model, given.args)
    manager = fxgraft.SeedManager(host)
    manager.germinate(
        "vit.layers.0.mlp.fc1" if "vit.layers.0.mlp.fc1" in host.slots else list(host.slots)[20], "mlp"
    )
    expected = given.model(*given.args)
    host.compile(backend="aot_eager")
    assert same_bits(host(*given.args).logits, expected.logits)
