"""A seed's random streams: its own, repeatable, and without a trace in the global one."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fxgraft.seeds.streams import GlobalDrawError, key_of, no_global_draws, private_stream
from fxgraft.util.bits import same_bits

KEY = key_of(0, "a")


def drawn(key):
    with private_stream(key):
        layer = nn.Linear(3, 3)
        return [
            *layer.parameters(),
            torch.randn(4),
            torch.rand(4),
            torch.randperm(9),
            torch.bernoulli(torch.full((9,), 0.5)),
        ]


def state():
    return torch.get_rng_state()


@given(run=st.integers(-(2**63), 2**64), name=st.text(max_size=5))
def test_keys(run, name):
    assert 0 <= key_of(run, name) < 2**62
    assert key_of(run, name) == key_of(run, name)
    assert key_of(run, name) != key_of(run + 1, name)
    assert key_of(run, name) != key_of(run, name + "x")


def test_a_private_stream_is_keyed_and_leaves_no_trace():
    before = state()
    first = drawn(KEY)
    assert torch.equal(state(), before)
    torch.rand(3)
    assert same_bits(drawn(KEY), first)
    assert not same_bits(drawn(KEY + 1)[0], first[0])


def test_the_first_draws_are_those_of_a_generator_of_that_seed():
    with private_stream(KEY):
        ours = torch.randn(5)
    assert same_bits(ours, torch.randn(5, generator=torch.Generator().manual_seed(KEY)))


def test_a_generator_that_is_given_is_used():
    with private_stream(KEY):
        given_one = torch.randn(5, generator=torch.Generator().manual_seed(7))
    assert same_bits(given_one, torch.randn(5, generator=torch.Generator().manual_seed(7)))


def test_other_threads_draw_from_the_global_stream_meanwhile():
    torch.manual_seed(3)
    expected = torch.rand(100)
    torch.manual_seed(3)
    found = []
    with private_stream(KEY):
        torch.rand(7)
        thread = threading.Thread(target=lambda: found.append(torch.rand(100)))
        thread.start()
        thread.join()
        torch.rand(7)
    assert same_bits(found, [expected])


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.rand(3),
        lambda: nn.init.normal_(torch.empty(3)),
        lambda: nn.functional.dropout(torch.ones(3), 0.5),
        lambda: torch.randperm(4),
    ],
)
def test_global_draws_are_caught(draw):
    before = state()
    with pytest.raises(GlobalDrawError), no_global_draws():
        draw()
    assert torch.equal(state(), before)


def test_fused_attention_draws_only_for_its_dropout():
    value = torch.randn(1, 2, 4, 8)
    attend = torch.nn.functional.scaled_dot_product_attention
    before = torch.get_rng_state()
    with no_global_draws():
        attend(value, value, value, is_causal=True)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(GlobalDrawError), no_global_draws():
        attend(value, value, value, dropout_p=0.5)


def test_what_does_not_draw_is_not_caught():
    with no_global_draws():
        assert same_bits(nn.functional.dropout(torch.ones(3), 0.5, training=False), torch.ones(3))
        assert torch.randn(3, generator=torch.Generator().manual_seed(0)).shape == (3,)
