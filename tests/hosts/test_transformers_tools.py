"""What Hugging Face's own tools do with a model, they do with a host that has a live seed."""

from __future__ import annotations

import pytest
import torch

import fxgraft
from fxgraft.errors import CheckpointError
from fxgraft.util.bits import same_bits
from tests.hosts.test_lives import Bend
from tests.hosts.transformer_models import MODELS

pytestmark = pytest.mark.usefixtures("quiet_transformers")

GENERATING = {
    "gpt2": "transformer.h.1.mlp.act",
    "llama": "model.layers.1.mlp.down_proj",
    "qwen2": "model.layers.0.mlp.up_proj",
    "t5": "decoder.block.0.layer.2.DenseReluDense.wi",
    "mamba": "backbone.layers.1.norm.mul",
}


def grown(name, slot=None, **config):
    given = MODELS[name]()
    if config:
        given.model.set_attn_implementation(config["attention"])
    host = fxgraft.trace(given.model, given.args, given.kwargs).eval()
    given.model.eval()
    manager = fxgraft.SeedManager(host)
    seed = manager.germinate(slot or next(iter(host.slots)), Bend)
    return given, host, manager, seed


@pytest.mark.parametrize("name", GENERATING)
@pytest.mark.parametrize(
    "options",
    [{"do_sample": False}, {"do_sample": True}, {"num_beams": 2}],
    ids=["greedy", "sample", "beams"],
)
def test_generate_with_a_cache(name, options):
    given, host, manager, seed = grown(name, GENERATING[name])
    prompt = given.kwargs["input_ids"][:, :4]
    options = {"max_new_tokens": 5, "pad_token_id": 0, "use_cache": True, **options}

    def generated(module):
        torch.manual_seed(3)
        return module.generate(prompt, **options)

    expected = generated(given.model)
    assert torch.equal(generated(host), expected)
    assert seed.module.calls or name == "mamba"  # whose blocks are called in another form while decoding
    if name != "mamba":
        manager.blend(seed, steps=1)
        manager.step()
        before = seed.module.calls
        generated(host)
        assert seed.module.calls > before + 1, "in the steps that decode, too"
    manager.cull(seed)
    assert torch.equal(generated(host), expected)


def test_a_seed_in_attention_runs_in_steps_of_one_token_too():
    """Traced with a cache the attention has no graph, and what it calls is a slot in every call."""
    given, host, manager, seed = grown("llama", "model.layers.0.self_attn.v_proj")
    manager.blend(seed, steps=1)
    manager.step()
    host.generate(given.kwargs["input_ids"][:, :4], max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert seed.module.calls == 5
    assert host.explain().modules["model.layers.0.self_attn"].fallbacks == 0


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "vit", "t5"])
def test_hidden_states_and_attentions_are_recorded(name):
    given, host, manager, seed = grown(name, attention="eager")
    kwargs = {**given.kwargs, "output_hidden_states": True, "output_attentions": True}
    expected, got = given.model(**kwargs), host(**kwargs)
    assert type(got) is type(expected)
    recorded = [key for key in expected if "hidden_states" in key or "attentions" in key]
    assert len(recorded) >= 2
    for key in expected:
        assert same_bits(got[key], expected[key]), key
    manager.cull(seed)
    assert all(same_bits(host(**kwargs)[key], expected[key]) for key in recorded)


@pytest.mark.parametrize("name", MODELS)
def test_classes_paths_and_configuration_are_the_models(name):
    given, host, _, _ = grown(name)
    ours = {path: type(m) for path, m in host.named_modules() if path and not path.startswith("_seeds")}
    theirs = {path: type(m) for path, m in given.model.named_modules() if path}
    assert ours == theirs
    assert host.config is given.model.config
    assert host.dtype == given.model.dtype
    assert host.num_parameters() == given.model.num_parameters()


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5"])
def test_save_pretrained_writes_the_model_once_nothing_is_grown(name, tmp_path):
    given, host, manager, seed = grown(name)
    with pytest.raises(CheckpointError, match="a model in which nothing grew"):
        host.save_pretrained(tmp_path)
    manager.cull(seed)
    host.save_pretrained(tmp_path)
    again = type(given.model).from_pretrained(tmp_path).eval()
    assert same_bits(dict(again.state_dict()), dict(given.model.state_dict()))
    assert same_bits(again(**given.kwargs).logits, given.model(**given.kwargs).logits)
