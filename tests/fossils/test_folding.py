"""Linear fossils merged into the layers in front of them: the same function, or a refusal that says why."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import fxgraft
from fxgraft.errors import SlotError, StageError
from fxgraft.fossils.linear_maps import Features, NotAffineError, affine_map
from fxgraft.util.bits import same_bits
from tests.harness import assert_same_bits, snapshot
from tests.hosts.transformer_models import bert, gpt2


class Behind(nn.Module):
    """One layer, whose value is the slot, and something behind it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return torch.tanh(self.layer(x))


def randomised(module):
    """Nothing of it at an initial value that would hide a mistake."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def grown(model, args, *seeds, alpha=1.0, mode=None):
    """A host with a fossil for each (slot, name, blueprint, config)."""
    host = fxgraft.trace(model, args)
    manager = fxgraft.SeedManager(host)
    for slot, name, blueprint, config in seeds:
        seed = manager.germinate(slot, blueprint, name=name, mode=mode, **config)
        randomised(seed.module)
        manager.blend(seed, to=alpha, steps=1)
        manager.step()
        manager.fossilize(seed)
    return host


def grouped(slot):
    return nn.Conv2d(8, 8, 1, groups=4)


IMAGE, ROWS, TOKENS = torch.randn(3, 4, 5, 5), torch.randn(3, 4), torch.randn(3, 6, 4)
IDS = torch.tensor([[0, 3, 2], [1, 1, 4]])
LAYERS = {
    "linear": (lambda: nn.Linear(4, 8), TOKENS),
    "linear of rows, no bias": (lambda: nn.Linear(4, 8, bias=False), ROWS),
    "convolution": (lambda: nn.Conv2d(4, 8, 3, padding=1), IMAGE),
    "strided, reflecting, no bias": (
        lambda: nn.Conv2d(4, 8, 3, 2, 1, bias=False, padding_mode="reflect"),
        IMAGE,
    ),
    "convolution in groups": (lambda: nn.Conv2d(4, 8, 3, groups=2), IMAGE),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), IMAGE),
    "convolution of rows": (lambda: nn.Conv1d(6, 8, 1), TOKENS),
    "batch norm": (lambda: nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8)), IMAGE),
    "group norm": (lambda: nn.Sequential(nn.Conv2d(4, 8, 1), nn.GroupNorm(2, 8)), IMAGE),
    "layer norm": (lambda: nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8)), TOKENS),
    "layer norm, no bias": (lambda: nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8, bias=False)), TOKENS),
    "batch norm of rows": (lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), ROWS),
    "rms norm": (lambda: nn.Sequential(nn.Linear(4, 8), nn.RMSNorm(8)), TOKENS),
    "embedding": (lambda: nn.Embedding(5, 8), IDS),
}
MIXING = {"low_rank": {}, "net2net": {"kernel": 1}}
CASES = [
    *product(["linear", "linear of rows, no bias", "convolution", "strided, reflecting, no bias"], MIXING),
    *product(["embedding"], ["low_rank", "scale_shift"]),
    *product(LAYERS.keys() - {"embedding", "rms norm", "convolution of rows"}, ["scale_shift"]),
    *product(["linear", "convolution", "rms norm", "embedding", "batch norm"], ["identity"]),
]


def case(layer, blueprint, alpha=1.0, mode=None, double=True):
    made, x = LAYERS[layer]
    model = randomised(made())
    if double:
        model, x = model.double(), x.double() if x.is_floating_point() else x
    path = "layer.1" if isinstance(model, nn.Sequential) else "layer"
    config = {"kernel": 1} if blueprint == "net2net" and x.dim() == 4 else {}
    host = grown(Behind(model), (x,), (path, "a", blueprint, config), alpha=alpha, mode=mode)
    return host, x, path


@pytest.mark.parametrize(("layer", "blueprint"), sorted(CASES))
@pytest.mark.parametrize(("mode", "alpha"), [("residual", 1.0), ("residual", 0.3), ("convex", 0.7)])
def test_it_is_the_same_function(layer, blueprint, mode, alpha):
    host, x, path = case(layer, blueprint, alpha, mode)
    folded = fxgraft.fold(host, (x,))
    assert (folded.into, folded.refused) == ({"a": path}, {})
    assert not [key for key in folded.module.state_dict() if "seed" in key]
    torch.testing.assert_close(folded.module(x), host(x), rtol=1e-10, atol=1e-12)
    if blueprint != "identity":
        assert not torch.allclose(folded.module(x), host.clear() or host(x))


@pytest.mark.parametrize("mode", ["residual", "convex", "gated", "channelwise"])
def test_in_every_mode(mode):
    host, x, _ = case("convolution", "scale_shift", 0.6, mode)
    folded = fxgraft.fold(host, (x,))
    assert folded.into == {"a": "layer"}
    torch.testing.assert_close(folded.module(x), host(x), rtol=1e-10, atol=1e-12)


def test_an_example_that_is_no_tuple_is_refused():
    host = fxgraft.trace(Behind(nn.Linear(4, 8)), (ROWS,))
    with pytest.raises(
        TypeError, match=r"example_args of fold: expected .* as a tuple, \(x,\); got a tensor"
    ):
        fxgraft.fold(host, ROWS)


def test_in_train_mode_too_with_the_statistics_of_the_batch():
    host, x, _ = case("batch norm", "scale_shift")
    folded = fxgraft.fold(host, (x,))
    for training in (True, False):
        expected = host.train(training)(x)
        torch.testing.assert_close(folded.module.train(training)(x), expected, rtol=1e-10, atol=1e-12)
    assert_same_bits(
        dict(folded.module.named_buffers()), {n: b for n, b in host.named_buffers() if "_seeds" not in n}
    )


def test_rezero_of_your_own_and_rank_that_is_no_square():
    def narrow_and_wide(slot):
        return nn.Sequential(
            nn.Linear(8, 3), nn.Identity(), nn.Linear(3, 20), nn.Dropout(0.0), nn.Linear(20, 8)
        )

    x = TOKENS.double()
    host = grown(Behind(randomised(nn.Linear(4, 8)).double()), (x,), ("layer", "a", narrow_and_wide, {}))
    folded = fxgraft.fold(host, (x,))
    assert folded.into == {"a": "layer"}
    torch.testing.assert_close(folded.module(x), host(x), rtol=1e-9, atol=1e-10)


def test_groups_that_fit_those_of_the_layer():
    x = IMAGE.double()
    layer = randomised(nn.Conv2d(4, 8, 3, groups=2)).double()
    host = grown(Behind(layer), (x,), ("layer", "a", grouped, {}))
    folded = fxgraft.fold(host, (x,))
    assert folded.into == {"a": "layer"}
    torch.testing.assert_close(folded.module(x), host(x), rtol=1e-10, atol=1e-12)


def test_several_at_one_slot_in_their_order():
    x = ROWS.double()
    seeds = [("layer", name, "net2net", {}) for name in "ba"]
    host = grown(Behind(nn.Linear(4, 8).double()), (x,), *seeds, mode="convex")
    folded = fxgraft.fold(host, (x,))
    assert folded.into == {"a": "layer", "b": "layer"}
    torch.testing.assert_close(folded.module(x), host(x), rtol=1e-10, atol=1e-10)


def test_one_behind_another_that_stays():
    seeds = [("layer", "a", "mlp", {}), ("layer", "b", "low_rank", {})]
    host = grown(Behind(nn.Linear(4, 8)), (ROWS,), *seeds)
    folded = fxgraft.fold(host, (ROWS,))
    assert folded.into == {}
    assert folded.refused == {
        "a": "has a GELU, which is not known to be linear",
        "b": "stands behind 'a', which is not merged",
    }
    assert same_bits(folded.module(ROWS), host(ROWS))
    assert (folded.max_abs, folded.max_rel) == (0, 0)


def test_one_in_front_of_another_that_stays():
    seeds = [("layer", "a", "low_rank", {}), ("layer", "b", "mlp", {})]
    host = grown(Behind(nn.Linear(4, 8)), (ROWS,), *seeds)
    folded = fxgraft.fold(host, (ROWS,))
    assert (list(folded.into), list(folded.refused)) == (["a"], ["b"])
    torch.testing.assert_close(folded.module(ROWS), host(ROWS))


# The report, and the host


def test_the_difference_is_that_of_the_outputs():
    host, x, _ = case("convolution", "low_rank", double=False)
    folded = fxgraft.fold(host, (x,))
    with torch.no_grad():
        expected, actual = host(x).double(), folded.module(x).double()
    assert folded.max_abs == float((actual - expected).abs().max())
    assert folded.max_abs > 0
    assert folded.max_rel == folded.max_abs / float(expected.abs().max())


def test_the_host_is_left_alone():
    host, x, _ = case("batch norm", "scale_shift", double=False)
    before = snapshot(host, x)
    folded = fxgraft.fold(host, (x,))
    assert_same_bits(snapshot(host, x), before)
    theirs = {p.data_ptr() for p in host.parameters()} | {b.data_ptr() for b in host.buffers() if b.dim()}
    assert not any(t.data_ptr() in theirs for t in folded.module.state_dict().values())


def test_a_layer_without_a_bias_gets_one_only_if_it_needs_it():
    host, x, _ = case("linear of rows, no bias", "low_rank")
    assert list(fxgraft.fold(host, (x,)).module.state_dict()) == ["layer.weight"]
    host, x, _ = case("linear of rows, no bias", "scale_shift")
    folded = fxgraft.fold(host, (x,)).module
    assert list(folded.state_dict()) == ["layer.weight", "layer.bias"]
    assert folded.layer.bias.requires_grad


# Refusals


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return torch.tanh(F.relu(self.fc(x)))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

    def forward(self, x):
        return self.fc(self.norm(self.fc(x)))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.head = nn.Linear(4, 4), nn.Linear(4, 4)
        self.head.weight = self.fc.weight

    def forward(self, x):
        return self.head(torch.tanh(self.fc(x)))


class Reading(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return F.linear(torch.tanh(self.fc(x)), self.fc.weight)


class Own(nn.Linear):
    pass


def hooked():
    model = Behind(nn.Linear(4, 4))
    model.layer.register_forward_hook(lambda module, args, result: None)
    return model


def hooked_before():
    model = Behind(nn.Linear(4, 4))
    model.layer.register_forward_pre_hook(lambda module, args: None)
    return model


def replaced_forward():
    model = Behind(nn.Linear(4, 4))
    own = model.layer.forward
    model.layer.forward = lambda x: own(x).abs()
    return model


class Shuffled(nn.Module):
    def forward(self, x):
        return x.flip(-1)


def behind(layer):
    return lambda: Behind(layer)


REFUSED = [
    (Functional, ROWS, "relu", "low_rank", "stands behind 'relu', which is no layer's result"),
    (Twice, ROWS, "fc", "low_rank", "stands behind 'fc', which is called in several places"),
    (Tied, ROWS, "fc", "low_rank", "stands behind 'fc', which shares a weight with 'head'"),
    (Reading, ROWS, "fc", "low_rank", "stands behind 'fc', whose weights are read elsewhere as well"),
    (hooked, ROWS, "layer", "low_rank", "stands behind 'layer', whose hooks see its result"),
    (behind(Own(4, 4)), ROWS, "layer", "low_rank", "stands behind a Own, into which nothing can be merged"),
    (behind(nn.ReLU()), ROWS, "layer", "low_rank", "stands behind a ReLU, into which nothing"),
    (behind(nn.LayerNorm(4)), ROWS, "layer", "low_rank", "mixes features, which the weights of a LayerNorm"),
    (behind(nn.RMSNorm(4)), ROWS, "layer", "scale_shift", "has a bias, and a RMSNorm has none"),
    (
        behind(nn.LayerNorm(4, elementwise_affine=False)),
        ROWS,
        "layer",
        "scale_shift",
        "stands behind a LayerNorm without a weight for each feature",
    ),
    (behind(nn.Conv2d(4, 8, 3, groups=2)), IMAGE, "layer", "low_rank", "mixes channels of different groups"),
    (behind(nn.Conv2d(4, 8, 3)), IMAGE, "layer", "net2net", "has a Conv2d that reads more than one position"),
    (behind(nn.Linear(5, 5)), IMAGE, "layer", "low_rank", "has a Conv2d that acts on dimension 1 of 4; "),
    (behind(nn.Conv2d(4, 8, 3)), IMAGE, "layer", "norm", "has a GroupNorm, which is not known to be linear"),
    (
        behind(nn.Linear(4, 4)),
        ROWS,
        "layer",
        lambda slot: nn.BatchNorm1d(4),
        "has a BatchNorm1d, which is not known to be linear",
    ),
    (
        behind(nn.Linear(4, 4)),
        ROWS,
        "layer",
        lambda slot: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)),
        "has dropout, which draws in train mode",
    ),
    (behind(nn.Linear(4, 4)), ROWS, "layer", lambda slot: Shuffled(), "has a Shuffled, which is not known"),
    (
        behind(nn.Linear(4, 4)),
        ROWS,
        "layer",
        lambda slot: parametrizations.weight_norm(nn.Linear(4, 4)),
        "has a ParametrizedLinear, which is not known to be linear",
    ),
    (
        lambda: Behind(parametrizations.weight_norm(nn.Linear(4, 4))),
        ROWS,
        "layer",
        "low_rank",
        "into which nothing can be merged",
    ),
    (hooked_before, ROWS, "layer", "low_rank", "whose hooks run before it and may set its weights"),
    (replaced_forward, ROWS, "layer", "low_rank", "whose forward was replaced"),
]


@pytest.mark.parametrize(("model", "x", "slot", "blueprint", "why"), REFUSED)
def test_what_cannot_be_merged_stays_and_says_why(model, x, slot, blueprint, why):
    host = grown(model(), (x,), (slot, "a", blueprint, {}))
    host.eval()
    folded = fxgraft.fold(host, (x,))
    assert folded.into == {}
    assert why in folded.refused["a"]
    assert same_bits(folded.module(x), host(x))
    with pytest.raises(SlotError, match=f"seed 'a' at slot '{slot}' cannot be folded: it .*"):
        fxgraft.fold(host, (x,), seeds=["a"])


@pytest.mark.parametrize(
    "make", [weight_norm, spectral_norm, lambda layer: prune.l1_unstructured(layer, "weight", 0.5)]
)
def test_a_weight_that_is_computed_in_each_call_takes_nothing(make):
    host = grown(Behind(make(nn.Linear(4, 4))), (ROWS,), ("layer", "a", "low_rank", {}))
    with torch.no_grad():  # leaves a weight that can be copied
        expected = host.eval()(ROWS)
        folded = fxgraft.fold(host, (ROWS,))
    assert "whose weight is no parameter, but computed anew" in folded.refused["a"]
    torch.testing.assert_close(folded.module(ROWS), expected)


@pytest.mark.parametrize(("dtype", "size"), [(torch.bfloat16, 1e-4), (torch.float32, 1e-9)])
def test_a_fossil_that_would_be_lost_in_rounding_stays(dtype, size):
    torch.manual_seed(0)
    x = ROWS.to(dtype)
    host = grown(Behind(nn.Linear(4, 4)).to(dtype), (x,), ("layer", "a", "low_rank", {}))
    module = host.graft("a").module
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(size**0.5)
        folded = fxgraft.fold(host, (x,))
        assert "it would be lost" in folded.refused["a"]
        assert same_bits(folded.module(x), host(x))
        for parameter in module.parameters():
            parameter.mul_(0)
    assert fxgraft.fold(host, (x,)).into == {"a": "layer"}  # nothing is lost of nothing


def test_a_branch_from_elsewhere():
    host = fxgraft.trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), (ROWS,))
    manager = fxgraft.SeedManager(host)
    seed = manager.germinate("2", "low_rank", source="0", name="a")
    manager.blend(seed, steps=1)
    manager.step()
    manager.fossilize(seed)
    assert fxgraft.fold(host, (ROWS,)).refused == {"a": "reads '0', and not the value that it is added to"}


def test_a_branch_reads_the_value_that_was_merged_into():
    x = ROWS.double()
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).double()
    host = grown(model, (x,), ("2", "b", "low_rank", {"source": "0"}), ("0", "a", "low_rank", {}))
    folded = fxgraft.fold(host, (x,))
    assert (list(folded.into), list(folded.refused)) == (["a"], ["b"])
    torch.testing.assert_close(folded.module(x), host(x), rtol=1e-10, atol=1e-12)


class TwoReaders(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        value = self.layer(x)
        return self.left(value) + self.right(value) + self.left(self.right.weight.sum(0) * value)


def test_a_seed_on_one_edge():
    x = ROWS.double()
    seeds = [("layer->left", "a", "low_rank", {}), ("layer", "b", "low_rank", {})]
    host = grown(TwoReaders().double(), (x,), *seeds)
    folded = fxgraft.fold(host, (x,))
    assert folded.into == {"b": "layer"}
    assert folded.refused == {"a": "stands on one edge, and 'layer' may have other readers"}
    torch.testing.assert_close(folded.module(x), host(x), rtol=1e-10, atol=1e-12)


def test_a_seed_behind_all_calls_of_a_module():
    host = grown(TwoReaders(), (ROWS,), ("left@*", "a", lambda slot: nn.Linear(3, 3), {}))
    assert fxgraft.fold(host, (ROWS,)).refused == {"a": "stands behind several calls"}


def test_seeds_by_name():
    seeds = [("layer", "a", "low_rank", {}), ("layer", "b", "scale_shift", {})]
    host = grown(Behind(nn.Linear(4, 8)), (ROWS,), *seeds)
    folded = fxgraft.fold(host, (ROWS,), seeds=["a"])
    assert (folded.into, folded.refused) == ({"a": "layer"}, {})
    assert [key for key in folded.module.state_dict() if "seed_b" in key]
    torch.testing.assert_close(folded.module(ROWS), host(ROWS))
    with pytest.raises(SlotError, match=r"seed 'b' .* it stands behind 'a', which is not merged"):
        fxgraft.fold(host, (ROWS,), seeds=["b"])
    with pytest.raises(StageError, match="the host has no fossil 'c'; it has a, b"):
        fxgraft.fold(host, (ROWS,), seeds=["c"])


def test_live_seeds_and_no_host():
    host = fxgraft.trace(Behind(nn.Linear(4, 8)), (ROWS,))
    fxgraft.SeedManager(host).germinate("layer", "low_rank", name="a")
    with pytest.raises(StageError, match="live seeds"):
        fxgraft.fold(host, (ROWS,))
    with pytest.raises(TypeError, match=r"expected a fxgraft\.Host"):
        fxgraft.fold(nn.Linear(4, 4), (ROWS,))


# The maps themselves


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(4, 4), (3, 5, 4)),
        (nn.Conv1d(4, 6, 1, groups=2), (3, 4, 5)),
        (nn.Conv2d(4, 4, 1, bias=False), (3, 4, 2, 2)),
        (nn.Conv3d(4, 4, 1, padding="valid"), (2, 4, 2, 2, 2)),
        (nn.Sequential(nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)), (3, 4, 2, 2)),
    ],
)
def test_a_map_is_what_the_module_computes(module, shape):
    module = module.double()
    x = torch.randn(shape, dtype=torch.float64)
    axis = len(shape) - 1 if isinstance(module, nn.Linear) else 1
    found = affine_map(module, 4, Features(axis, len(shape), x.device))
    by_hand = x.movedim(axis, -1) @ found.matrix.T + found.bias
    torch.testing.assert_close(by_hand.movedim(-1, axis), module(x))


def test_maps_along_two_dimensions_are_none():
    mixed = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Linear(4, 4))
    with pytest.raises(NotAffineError, match=r"has a Linear that acts on dimension 3 of 4; .* dimension 1"):
        affine_map(mixed, 4, Features(1, 4, torch.device("cpu")))


def test_a_hook_in_a_seed():
    module = nn.Sequential(nn.Linear(4, 4))
    module[0].register_forward_pre_hook(lambda module, args: None)
    with pytest.raises(NotAffineError, match="has a Linear with hooks"):
        affine_map(module, 4, Features(1, 2, torch.device("cpu")))


# Models that people use


def test_gpt2():
    model, _, kwargs = gpt2()
    kwargs = {**kwargs, "use_cache": False}  # with a cache its attention has no graph
    host = fxgraft.trace(model.eval(), (), kwargs)
    manager = fxgraft.SeedManager(host)
    slots = ["transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj", "transformer.h.1.mlp.act"]
    for name, slot in zip("abc", slots, strict=True):
        seed = manager.germinate(slot, "low_rank", name=name)
        randomised(seed.module)
        manager.blend(seed, steps=1)
        manager.step()
        manager.fossilize(seed)
    folded = fxgraft.fold(host, (), kwargs)
    assert folded.into == {"a": slots[0], "b": slots[1]}
    assert "into which nothing can be merged" in folded.refused["c"]
    assert isinstance(folded.module, type(model))
    assert folded.max_rel < 1e-4
    torch.testing.assert_close(folded.module(**kwargs).logits, host(**kwargs).logits, rtol=1e-4, atol=1e-4)


def test_bert():
    model, _, kwargs = bert()
    host = fxgraft.trace(model.eval(), (), kwargs)
    manager = fxgraft.SeedManager(host)
    slots = {
        "a": ("bert.encoder.layer.0.attention.self.query", "low_rank"),
        "b": ("bert.encoder.layer.0.attention.output.LayerNorm", "scale_shift"),
    }
    for name, (slot, blueprint) in slots.items():
        seed = manager.germinate(slot, blueprint, name=name)
        randomised(seed.module)
        manager.blend(seed, steps=1)
        manager.step()
        manager.fossilize(seed)
    folded = fxgraft.fold(host, (), kwargs)
    assert folded.into == {name: slot for name, (slot, _) in slots.items()}
    assert list(folded.module.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(folded.module(**kwargs).logits, host(**kwargs).logits, rtol=1e-4, atol=1e-4)
