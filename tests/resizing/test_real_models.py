"""Real models go through all of it: deeper, wider, a branch fused, trained, transplanted, saved, loaded."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft.errors import CheckpointError
from tests.harness import assert_same_bits
from tests.resizing.models import Bottleneck, ResNet
from tests.resizing.test_wider_transformers import gpt2, llama, vit


@dataclass
class Case:
    """A model, and how it grows.

    Attributes:
        make: gives model and batch.
        call: further arguments.
        stack: gets one block more.
        widened: group of channels -> by how many.
        part: a part of a block, with the slot of its input, beside which a branch of its form is tried.
        source: that slot.
        larger: the settings of the class that has these sizes.
    """

    make: Any
    call: dict[str, Any]
    stack: str
    widened: dict[str, int]
    part: str
    source: str
    larger: dict[str, Any]


CASES = {
    "gpt2": Case(
        gpt2,
        {"use_cache": False},
        "transformer.h",
        {
            "transformer.h.0.mlp.c_fc": 8,
            "_seeds.GPT2Block_at_transformer_h_0.module.mlp.c_fc": 72,
            "transformer.h.0.attn.c_attn": 8,
            "_seeds.GPT2Block_at_transformer_h_0.module.attn.c_attn": 8,
            "transformer.wte": 8,
        },
        "transformer.h.0.mlp",
        "transformer.h.0.ln_2",
        {"n_layer": 2, "n_inner": 136, "n_embd": 24, "n_head": 6, "layer_norm_epsilon": 1e-5 * 16 / 24},
    ),
    "llama": Case(
        llama,
        {"use_cache": False},
        "model.layers",
        {
            "model.layers.0.mlp.gate_proj": 8,
            "_seeds.LlamaDecoderLayer_at_model_layers_0.module.mlp.gate_proj": 32,
            "model.layers.0.self_attn.q_proj": 8,
            "_seeds.LlamaDecoderLayer_at_model_layers_0.module.self_attn.q_proj": 8,
            "model.embed_tokens": 8,
        },
        "model.layers.0.mlp",
        "model.layers.0.post_attention_layernorm",
        {
            "num_hidden_layers": 2,
            "intermediate_size": 56,
            "hidden_size": 24,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 4,
            "rms_norm_eps": 1e-6 * 16 / 24,
        },
    ),
    "vit": Case(
        vit,
        {},
        "vit.layers",
        {
            "vit.layers.0.mlp.fc1": 8,
            "_seeds.ViTLayer_at_vit_layers_0.module.mlp.fc1": 32,
            "vit.layers.0.attention.q_proj": 8,
            "_seeds.ViTLayer_at_vit_layers_0.module.attention.q_proj": 8,
            "vit.embeddings.patch_embeddings.projection": 8,
        },
        "vit.layers.0.mlp",
        "vit.layers.0.layernorm_after",
        {
            "num_hidden_layers": 2,
            "intermediate_size": 56,
            "hidden_size": 24,
            "num_attention_heads": 6,
            "layer_norm_eps": 1e-12 * 16 / 24,
        },
    ),
}


class Run:
    """A host in training."""

    def __init__(self, model, batch, call, path=None):
        self.batch, self.call = batch, call
        self.host = fxgraft.trace(model, (batch,), call)
        self.optimizer = torch.optim.AdamW(self.host.parameters(), lr=1e-3)
        if path is None:
            self.manager = fxgraft.SeedManager(self.host, self.optimizer, check_every=0)
        else:
            self.manager = fxgraft.SeedManager.load(path, self.host, self.optimizer, check_every=0)

    def train(self, steps=1):
        self.host.train()
        for _ in range(steps):
            torch.manual_seed(0)
            self.optimizer.zero_grad()
            out = self.host(self.batch, **self.call)
            getattr(out, "logits", out).pow(2).mean().backward()
            self.optimizer.step()
            self.manager.step()

    def outputs(self, module=None):
        module = (self.host if module is None else module).eval()
        with torch.no_grad():
            out = module(self.batch, **self.call)
        return getattr(out, "logits", out)


def grow(run, stack, widened, part, source):
    """Deeper, with a branch beside a part that is fused with it, and wider."""
    before = run.outputs()
    run.manager.deepen(stack, at="end")
    assert_same_bits(run.outputs(), before)
    run.train()
    branch = copy.deepcopy(run.host.get_submodule(part))
    for parameter in branch.parameters():
        nn.init.normal_(parameter, std=0.05)
    run.manager.germinate(part, branch, source=source, name="branch", isolated=False)
    run.manager.blend("branch", steps=0)
    run.train()
    run.manager.fossilize("branch")
    before = run.outputs()
    run.manager.fuse("branch")
    torch.testing.assert_close(run.outputs(), before, rtol=1e-4, atol=1e-5)
    assert "branch" not in run.manager.seeds
    with run.manager.together():
        for name, by in widened.items():
            run.manager.widen(name, by)
    torch.testing.assert_close(run.outputs(), before, rtol=1e-4, atol=1e-5)
    run.train()


@pytest.mark.parametrize("name", CASES)
def test_a_model_of_transformers_lives_through_it(name, tmp_path):
    case = CASES[name]
    torch.manual_seed(0)
    model, batch = case.make()
    before = model.config.to_dict()
    run = Run(model, batch, case.call)
    run.train()
    grow(run, case.stack, case.widened, case.part, case.source)
    run.manager.save(tmp_path / "run")
    again = Run(case.make()[0], batch, case.call, tmp_path / "run")
    for one in (run, again):
        one.train()
    assert_same_bits(again.host.state_dict(), run.host.state_dict())
    config = copy.deepcopy(model.config)
    for key, value in case.larger.items():
        setattr(config, key, value)
    target = type(model)(config)
    optimizer = torch.optim.AdamW(target.parameters(), lr=1e-3)
    done = fxgraft.transplant(run.host, target, optimizer=run.optimizer, target_optimizer=optimizer)
    assert done.max_abs < 1e-5
    assert len(optimizer.state) == len(list(target.parameters()))
    target.save_pretrained(tmp_path / "model")
    loaded = type(model).from_pretrained(tmp_path / "model")
    torch.testing.assert_close(run.outputs(loaded), run.outputs(), rtol=1e-4, atol=1e-5)
    plain = fxgraft.unwrap(run.host)  # its configuration has the sizes that it has
    assert {key: getattr(plain.config, key) for key in case.larger} == pytest.approx(case.larger)
    plain.save_pretrained(tmp_path / "plain")
    loaded = type(model).from_pretrained(tmp_path / "plain")
    assert_same_bits(run.outputs(loaded), run.outputs())
    assert model.config.to_dict() == before


def test_sizes_that_no_configuration_has_are_refused_when_written(tmp_path):
    model, batch = gpt2()
    host = fxgraft.trace(model, (batch,), {"use_cache": False})
    fxgraft.SeedManager(host, check_every=0).widen("transformer.h.0.attn.c_attn", 4)  # a head, of 16 / 4
    for one in (host, fxgraft.unwrap(host)):
        with pytest.raises(CheckpointError, match="which is wider"):
            one.save_pretrained(tmp_path)


def test_a_resnet_lives_through_it(tmp_path):
    torch.manual_seed(0)
    batch = torch.randn(3, 3, 9, 9)
    run = Run(ResNet(), batch, {})
    run.train(2)
    before = run.outputs()
    run.manager.deepen("layer1", at="end")
    assert_same_bits(run.outputs(), before)
    run.train()
    run.manager.germinate("conv1", nn.Conv2d(8, 8, 1, bias=False), name="linear", isolated=False)
    run.train()
    run.manager.blend("linear", steps=0)
    run.manager.fossilize("linear")
    before = run.outputs()
    assert dict(run.manager.fuse("linear")) == {"linear": "conv1"}
    torch.testing.assert_close(run.outputs(), before, rtol=1e-4, atol=1e-5)
    before = run.outputs()
    with run.manager.together():
        for i in range(2):
            run.manager.widen(f"layer1.{i}.conv1", 2)
            run.manager.widen(f"layer1.{i}.conv2", 2)
        run.manager.widen("_seeds.Bottleneck_at_layer1_1.module.conv1", 2)
        run.manager.widen("_seeds.Bottleneck_at_layer1_1.module.conv2", 2)
        run.manager.widen("conv1", 4)
    torch.testing.assert_close(run.outputs(), before, rtol=1e-4, atol=1e-5)
    run.train()
    run.manager.save(tmp_path / "run")
    again = Run(ResNet(), batch, {}, tmp_path / "run")
    for one in (run, again):
        one.train()
    assert_same_bits(again.host.state_dict(), run.host.state_dict())
    target = ResNet()
    target.conv1, target.bn1 = nn.Conv2d(3, 12, 3, stride=2, bias=False), nn.BatchNorm2d(12)
    target.layer1 = nn.Sequential(*(Bottleneck(12, 6) for _ in range(3)))
    target.fc = nn.Linear(12, 5)
    optimizer = torch.optim.AdamW(target.parameters(), lr=1e-3)
    assert (
        fxgraft.transplant(run.host, target, optimizer=run.optimizer, target_optimizer=optimizer).max_abs
        < 1e-6
    )
    assert set(target.state_dict()) == set(fxgraft.unwrap(run.host).state_dict())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_with_a_cache_output_layers_are_found_on_a_run(name):
    case = CASES[name]
    model, batch = case.make()
    model.config.use_cache = True
    host = fxgraft.trace(model, (batch,), {"labels": batch})
    opaque = [path for path in host.opaque if path.endswith("attn")]
    assert opaque  # the code of attention has no graph there
    with torch.no_grad():
        before = host.eval()(batch, labels=batch).logits
    (seed,) = fxgraft.SeedManager(host, check_every=0).deepen(case.stack)
    with torch.no_grad():
        assert_same_bits(host(batch, labels=batch).logits, before)
    zeroed = {n for n, p in seed.module.named_parameters() if not p.any() and p.dim() > 1}
    assert zeroed == {
        "gpt2": {"attn.c_proj.weight", "mlp.c_proj.weight"},
        "llama": {"self_attn.o_proj.weight", "mlp.down_proj.weight"},
    }[name]  # fmt: skip
    host.train()(batch, labels=batch).loss.backward()
    assert all(
        p.grad is not None and bool(p.grad.any()) for n, p in seed.module.named_parameters() if n in zeroed
    )


def test_generation_goes_on_with_the_wider_and_deeper_host():
    model, batch = gpt2()
    host = fxgraft.trace(model, (batch,), {"use_cache": False})
    manager = fxgraft.SeedManager(host, check_every=0)
    before = host.eval().generate(batch, max_new_tokens=4, do_sample=False)
    manager.widen("transformer.h.0.attn.c_attn", 4)
    manager.deepen("transformer.h")
    assert torch.equal(host.generate(batch, max_new_tokens=4, do_sample=False), before)
