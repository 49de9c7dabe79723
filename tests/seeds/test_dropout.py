"""The dropout of a seed: its masks are its own, repeatable, the same when compiled, and random."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fxgraft.seeds.dropout import (
    PrivateDropout,
    SeedDropout,
    SeedDropout2d,
    _threshold,
    privatize,
    words,
)
from fxgraft.seeds.streams import key_of, no_global_draws
from fxgraft.util.bits import same_bits

KEY = key_of(0, "a")
CPU = torch.device("cpu")


def test_dropout_keeps_its_share_and_its_scale():
    dropout, x = SeedDropout(0.3, KEY), torch.ones(200, 200)
    out = dropout(x)
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / 0.7).item()}
    assert (out != 0).double().mean().item() == pytest.approx(0.7, abs=0.01)
    assert out.mean().item() == pytest.approx(1, abs=0.02)


def test_the_gradient_passes_where_the_value_does():
    x = torch.ones(50, requires_grad=True)
    out = SeedDropout(0.5, KEY)(x)
    out.sum().backward()
    assert same_bits(x.grad, out.detach())


def test_masks_differ_from_draw_to_draw_and_repeat_from_a_saved_state():
    dropout, x = SeedDropout(0.5, KEY), torch.ones(64)
    first, second = dropout(x), dropout(x)
    assert not torch.equal(first, second)
    assert dropout.draws.item() == 2
    resumed = SeedDropout(0.5, 0)
    resumed.load_state_dict(dropout.state_dict())
    assert same_bits(resumed(x), dropout(x))


def test_another_key_is_another_mask():
    x = torch.ones(64)
    assert not torch.equal(SeedDropout(0.5, KEY)(x), SeedDropout(0.5, KEY + 1)(x))
    assert not torch.equal(SeedDropout(0.5, KEY)(x), SeedDropout(0.5, KEY + 2**40)(x))


def test_whole_channels():
    out = SeedDropout2d(0.5, KEY)(torch.ones(8, 16, 3, 3))
    per_channel = out.flatten(2)
    assert same_bits(per_channel, per_channel[:, :, :1].expand(8, 16, 9))
    assert 0 < (per_channel[:, :, 0] == 0).sum() < 8 * 16


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (nn.Dropout1d, (6, 9)),
        (nn.Dropout1d, (2, 6, 9)),
        (nn.Dropout2d, (2, 6, 9)),
        (nn.Dropout2d, (2, 6, 4, 4)),
        (nn.Dropout3d, (6, 3, 4, 4)),
        (nn.Dropout3d, (2, 6, 3, 4, 4)),
    ],
)
@pytest.mark.filterwarnings("ignore:dropout2d")
def test_channels_are_those_that_torch_takes_for_channels(kind, shape):
    ones = torch.ones(shape)
    torch.manual_seed(0)
    theirs = kind(0.5)(ones)
    ours = privatize(kind(0.5), KEY)(ones)
    last = tuple(range(next(d for d, size in enumerate(shape) if size == 6) + 1, len(shape)))
    for out in (theirs, ours):
        assert bool((out.amax(last) == out.amin(last)).all()), "whole channels"
        assert 0 < (out == 0).double().mean() < 1


@pytest.mark.parametrize("kind", [nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d])
def test_it_is_the_dropout_that_it_stands_in_for(kind):
    """Code that looks for dropout, to switch it on or off or to change ``p``, finds it."""
    made = privatize(kind(0.5, inplace=True).eval(), KEY)
    assert isinstance(made, kind)
    assert isinstance(made, nn.Dropout) == (kind is nn.Dropout)
    plain = made.like_torch()
    assert (type(plain), plain.p, plain.inplace, plain.training) == (kind, 0.5, True, False)
    made.p = 0.0
    assert made.train()(ones := torch.ones(2, 2, 2, 2, 2)) is ones


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [0.1, 0.3, 0.9, 1.0])
def test_the_bits_are_those_of_the_products_with_mask_and_scale(p, dtype):
    """In compiled code that is how it is computed: first the mask, then the scale."""
    odd = torch.tensor([0.0, -0.0, 1e-40, -1e-45, 3e38, -3e38, torch.inf, -torch.inf, torch.nan])
    x = torch.cat([odd.repeat(20), torch.randn(300)]).to(dtype).requires_grad_()
    dropout = SeedDropout(p, KEY)
    kept = words(x.shape, dropout.key, dropout.draws, CPU) >= _threshold(p)
    expected, out = x * kept * (1 / (1 - p) if p < 1 else 0.0), dropout(x)
    assert same_bits(out, expected)
    upstream = torch.randn_like(out)
    (grad,), (expected_grad,) = (torch.autograd.grad(one, x, upstream) for one in (out, expected))
    assert same_bits(grad, expected_grad)
    again = SeedDropout(p, KEY, inplace=True)
    assert same_bits(again(x.detach().clone()), expected)


def test_in_place():
    """What reads the value of an in-place dropout reads what was dropped."""
    x, y = torch.ones(64), torch.ones(64)
    assert SeedDropout(0.5, KEY, inplace=True)(x) is x
    assert same_bits(x, SeedDropout(0.5, KEY)(y))
    assert same_bits(y, torch.ones(64))


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.5, False)])
def test_nothing_to_drop(p, training):
    dropout, x = SeedDropout(p, KEY).train(training), torch.randn(5)
    assert dropout(x) is x
    assert dropout.draws.item() == 0


def test_everything_dropped():
    assert not SeedDropout(1.0, KEY)(torch.ones(100)).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_dtype_stays(dtype):
    assert SeedDropout(0.5, KEY).to(dtype)(torch.ones(8, dtype=dtype)).dtype is dtype
    assert SeedDropout(0.5, KEY).to(dtype).key.dtype is torch.int64


def test_it_leaves_the_global_stream_alone():
    before = torch.get_rng_state()
    with no_global_draws():
        SeedDropout(0.5, KEY)(torch.ones(9))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_masks_are_those_of_eager_without_recompiles():
    eager, traced = SeedDropout(0.5, KEY), SeedDropout(0.5, KEY)
    compiled, x = torch.compile(traced, backend="aot_eager", fullgraph=True), torch.randn(6, 6)
    assert same_bits(compiled(x), eager(x))
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(3):
            assert same_bits(compiled(x), eager(x))


# The hash behind it


def numbers(count, key=KEY, draw=0):
    """In [0, 1), from the words."""
    drawn = words(torch.Size([count]), torch.tensor(key), torch.tensor(draw), CPU)
    return (drawn.double() + 2**31) / 2**32


def test_words_are_spread_evenly():
    assert words(torch.Size([2]), torch.tensor(KEY), torch.tensor(0), CPU).dtype is torch.int32
    counts = torch.histc(numbers(100_000), bins=50, min=0, max=1)
    chi_squared = ((counts - 2000).square() / 2000).sum().item()
    assert chi_squared < 85.4, "the 99.9 % quantile at 49 degrees of freedom"


@pytest.mark.parametrize("lag", [1, 2, 64, 1024])
def test_neighbours_are_not_correlated(lag):
    u = numbers(100_000) - 0.5
    correlation = 12 * (u[lag:] * u[:-lag]).mean().item()
    assert abs(correlation) < 4 / 100_000**0.5


@pytest.mark.parametrize(("key", "draw"), [(KEY, 1), (KEY + 1, 0), (KEY ^ (1 << 61), 0)])
def test_streams_are_not_correlated(key, draw):
    ours, theirs = numbers(100_000) - 0.5, numbers(100_000, key, draw) - 0.5
    assert abs(12 * (ours * theirs).mean().item()) < 4 / 100_000**0.5


@pytest.mark.parametrize("key", [0, KEY, 2**31])
def test_many_masks_of_one_stream_are_independent(key):
    """Of two draws, of two positions over all draws, and of a draw with the next one at any shift."""
    draws, count = 256, 2048
    masks = torch.stack([(numbers(count, key, draw) >= 0.5).double() * 2 - 1 for draw in range(draws)])
    spectrum = torch.fft.rfft(masks)
    for found in (
        (masks @ masks.T / count**0.5)[~torch.eye(draws, dtype=torch.bool)],
        (masks.T @ masks / draws**0.5)[~torch.eye(count, dtype=torch.bool)],
        torch.fft.irfft(spectrum[:-1] * spectrum[1:].conj(), n=count) / count**0.5,
        torch.fft.irfft(spectrum * spectrum.conj(), n=count)[:, 1:] / count**0.5,
    ):
        assert found.std().item() == pytest.approx(1, abs=0.02)
        assert found.abs().max().item() < 6.5, "of a million normal numbers the largest is about 5"


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 1 - 1e-9])
def test_the_share_that_is_dropped(p):
    dropped = 1 - (SeedDropout(p, KEY)(torch.ones(400_000)) != 0).double().mean().item()
    assert dropped == pytest.approx(p, abs=5 * (p * (1 - p) / 400_000) ** 0.5 + 1e-9)


def test_the_shape_does_not_matter_but_the_position_does():
    shaped, flat = (words(torch.Size(s), torch.tensor(KEY), torch.tensor(0), CPU) for s in ([3, 4], [12]))
    assert same_bits(shaped.reshape(-1), flat)
    assert numbers(0).shape == (0,)


# Putting it in


def test_privatize_replaces_dropout_modules_and_nothing_else():
    inner = nn.Sequential(nn.Dropout2d(0.2), nn.ReLU())
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1), inner, nn.Dropout(0.3)).eval()
    linear = module[0]
    assert privatize(module, KEY) is module
    assert module[0] is linear
    kinds = [(type(m), m.p, m.training) for m in module.modules() if isinstance(m, PrivateDropout)]
    assert kinds == [
        (SeedDropout, 0.1, False),
        (SeedDropout2d, 0.2, False),
        (SeedDropout, 0.3, False),
    ]
    keys = [m.key.item() for m in module.modules() if isinstance(m, PrivateDropout)]
    assert len(set(keys)) == 3
    assert keys[0] == key_of(KEY, "1")


def test_privatize_a_dropout_itself():
    replaced = privatize(nn.Dropout(0.4), KEY)
    assert isinstance(replaced, SeedDropout)
    assert replaced.p == 0.4


@pytest.mark.parametrize("kind", [nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d])
def test_a_privatized_seed_draws_nothing_globally(kind):
    module = privatize(nn.Sequential(kind(0.5)), KEY)
    with no_global_draws():
        out = module(torch.ones(4, 6, 2, 2, 2) if kind is nn.Dropout3d else torch.ones(4, 6, 5))
    assert (out == 0).any()


def test_a_dropout_used_in_two_places_stays_one_module():
    shared = nn.Dropout(0.5)
    module = privatize(nn.ModuleDict({"a": shared, "b": shared}), KEY)
    assert isinstance(module["a"], SeedDropout)
    assert module["b"] is module["a"]


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_mask_that_is_drawn_again_in_backward_is_warned_of(use_reentrant: bool) -> None:
    dropout, x = SeedDropout(0.5, KEY), torch.ones(64, requires_grad=True)
    out = checkpoint(lambda x: dropout(x) * x, x, use_reentrant=use_reentrant)
    with pytest.warns(UserWarning, match="inside of a backward pass, for activation checkpointing"):
        out.sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (dropout(x) * x).sum().backward()
        checkpoint(lambda x: dropout.eval()(x) * x, x, use_reentrant=use_reentrant).sum().backward()
