"""The objectives of an isolated seed, for random values: bounded, free of the loss scale, finite."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from fxgraft.util.bits import same_bits
from fxgraft_passes import objectives
from fxgraft_passes.objectives import OBJECTIVES, seed_gradient

RHO = 0.1
numbers = st.floats(-1e3, 1e3, allow_subnormal=False).filter(lambda x: x == 0 or abs(x) > 1e-6)
triples = st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=6)
directions = st.integers(0, 2**31).map(
    lambda seed: torch.randn(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
)


def columns(rows):
    """g, h and d of a list of triples."""
    return torch.tensor(rows, dtype=torch.float64).unbind(1)


def unit(x):
    return x / x.norm()


@given(rows=triples, scale=st.sampled_from([2.0**-20, 0.5, 3.0, 2.0**16]))
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_free_of_the_loss_scale(objective, rows, scale):
    g, h, d = columns(rows)
    assume(objective != "trust_step" or h.any())
    scaled = seed_gradient(objective, RHO, scale * g, h, d)
    torch.testing.assert_close(
        scaled, scale * seed_gradient(objective, RHO, g, h, d), rtol=1e-9, atol=1e-9 * scale
    )


@given(g=directions, h=directions, d=directions, radius=st.floats(0, 0.999))
def test_trust_inside_the_radius_is_the_gradient_itself(g, h, d, radius):
    d = unit(d) * radius * RHO * h.norm()
    assert same_bits(seed_gradient("trust", RHO, g, h, d), g)


@given(g=directions, h=directions, d=directions, size=st.sampled_from([0.0, 1e-3, 0.05, 0.1, 1.0, 1e6]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_trust_in_eager_mode_has_the_bits_of_compiled_code(dtype, g, h, d, size):
    g, h, d = g.to(dtype), h.to(dtype), (size * d).to(dtype)
    by_numbers = seed_gradient("trust", RHO, g, h, d)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objectives, "is_free_to_look_at", lambda flag: False)
        by_tensors = seed_gradient("trust", RHO, g, h, d)
    assert same_bits(by_numbers, by_tensors)


@given(g=directions, d=directions, tiny=st.sampled_from([0.0, 1e-44, 1e-37]))
def test_trust_of_a_host_of_almost_nothing_is_finite(g, d, tiny):
    found = seed_gradient("trust", RHO, g.float(), torch.full((6,), tiny), d.float() * tiny)
    assert found.isfinite().all()


@given(g=directions, h=directions, d=directions, excess=st.floats(1e-3, 100))
def test_trust_outside_the_radius_points_inwards(g, h, d, excess):
    d = unit(d) * (1 + excess) * RHO * h.norm()
    given_gradient = seed_gradient("trust", RHO, g, h, d)
    along, out = (given_gradient @ unit(d)).item(), (g @ unit(d)).item()
    # descent goes along -gradient: nothing outwards is left, and there is a pull back
    pull = g.norm().item() * min(excess, 1)
    assert along > 0
    assert math.isclose(along, max(out, 0) + pull, rel_tol=1e-9)
    # across, nothing is changed
    across = given_gradient - along * unit(d)
    torch.testing.assert_close(across, g - out * unit(d), rtol=1e-9, atol=1e-12)
    assert given_gradient.norm() <= 2 * g.norm() * (1 + 1e-9)


@given(g=directions, h=directions, d=directions, rate=st.sampled_from([1e-2, 1e-1]))
def test_descent_on_a_linear_loss_stays_bounded_under_trust(g, h, d, rate):
    radius = RHO * h.norm()
    step = rate * radius / g.norm()
    d = unit(d) * 5 * radius
    for _ in range(int(20 / rate)):
        d = d - step * seed_gradient("trust", RHO, g, h, d)
    assert d.norm() <= 2 * radius
    assert g @ d < 0, "and it goes where the loss falls"


@given(g=directions, h=directions)
def test_trust_step_rests_at_the_normalised_gradient_step(g, h):
    rest = -RHO * h.norm() * unit(g)
    resting = seed_gradient("trust_step", RHO, g, h, rest)
    torch.testing.assert_close(resting, torch.zeros_like(g), rtol=0, atol=1e-12)
    d, step = torch.zeros_like(g), 0.1 * RHO * h.norm() / g.norm()
    for _ in range(400):
        d = d - step * seed_gradient("trust_step", RHO, g, h, d)
    torch.testing.assert_close(d, rest, rtol=1e-9, atol=1e-12)


def test_straight_through_has_no_bound():
    g, h = torch.ones(4), torch.ones(4)
    assert seed_gradient("straight_through", RHO, g, h, 1e6 * torch.ones(4)) is g


@given(rows=triples)
def test_shadow_gives_nothing(rows):
    g, h, d = columns(rows)
    assert same_bits(seed_gradient("shadow", RHO, g, h, d), torch.zeros_like(g))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_nothing_at_all_is_finite(objective, dtype):
    amounts = (0.0, 10.0)
    for g, h, d in product(amounts, amounts, (0.0, 1e-6, 1.0)):
        full = [torch.full((4,), amount, dtype=dtype) for amount in (g, h, d)]
        found = seed_gradient(objective, RHO, *full)
        assert torch.isfinite(found).all(), f"g={g} h={h} d={d}: {found}"
        assert found.dtype is dtype
        assert g or not found.any(), "no gradient, no learning"


@pytest.mark.parametrize("objective", ["trust", "trust_step"])
def test_a_scaled_loss_does_not_overflow_in_half_precision(objective):
    # |g| is above 65504, each of its elements far below; the seed is somewhat outside of its radius
    g = torch.full((4096,), 20000.0, dtype=torch.float16)
    h, d = torch.ones(4096, dtype=torch.float16), torch.full((4096,), 0.15, dtype=torch.float16)
    found = seed_gradient(objective, RHO, g, h, d)
    exact = seed_gradient(objective, RHO, g.double(), h.double(), d.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_follows_double(dtype):
    g, h, d = (torch.randn(256).to(dtype) for _ in range(3))
    for objective, size in product(OBJECTIVES, (0.01, 0.2, 3.0)):
        given_values = (g, h, (size * d).to(dtype))
        found = seed_gradient(objective, RHO, *given_values)
        exact = seed_gradient(objective, RHO, *(value.double() for value in given_values))
        torch.testing.assert_close(found.double(), exact, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_empty_values(objective):
    empty = torch.zeros(0, 4)
    assert seed_gradient(objective, RHO, empty, empty, empty).shape == (0, 4)
