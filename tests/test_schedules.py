"""Schedules are monotone and clamped, and a ramp ends exactly at its target."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxgraft.schedules import SCHEDULES, Ramp, resolve

shares = st.floats(0, 1)
names = st.sampled_from(sorted(SCHEDULES))


@pytest.mark.parametrize("name", SCHEDULES)
def test_from_zero_to_one_and_symmetric(name):
    schedule = SCHEDULES[name]
    assert schedule(0) == pytest.approx(0, abs=1e-15)
    assert schedule(1) == pytest.approx(1, abs=1e-15)
    assert schedule(0.5) == pytest.approx(0.5, abs=1e-15)
    assert schedule(0.2) + schedule(0.8) == pytest.approx(1, abs=1e-15)


def test_what_they_are():
    assert SCHEDULES["linear"](0.3) == 0.3
    assert SCHEDULES["cosine"](1 / 3) == pytest.approx(0.25)
    low, high = 1 / (1 + math.exp(6)), 1 / (1 + math.exp(-6))
    assert SCHEDULES["sigmoid"](0.25) == pytest.approx((1 / (1 + math.exp(3)) - low) / (high - low))


@given(name=names, starts=st.lists(shares, min_size=1, max_size=5), to=shares, steps=st.integers(1, 60))
def test_a_ramp_is_monotone_inside_its_ends_and_ends_exactly(name, starts, to, steps):
    ramp = Ramp(tuple(starts), to, steps, resolve(name))
    way = [ramp.alphas(step) for step in range(steps + 3)]
    for channel, start in enumerate(starts):
        path = [alphas[channel] for alphas in way]
        low, high = min(start, to), max(start, to)
        assert all(low <= alpha <= high for alpha in path)
        assert all((a <= b) if start <= to else (a >= b) for a, b in pairwise(path))
        assert path[0] == pytest.approx(start, abs=1e-15)
        assert path[steps:] == [to] * 3


def test_channels_follow_each_other():
    ramp = Ramp((0.0, 0.0, 0.0), 1.0, 4, resolve("linear"))
    assert [ramp.alphas(step) for step in range(5)] == [
        (0.0, 0.0, 0.0),
        (0.5, 0.0, 0.0),
        (1.0, 0.5, 0.0),
        (1.0, 1.0, 0.5),
        (1.0, 1.0, 1.0),
    ]


def test_a_callable_is_clamped():
    ramp = Ramp((0.0,), 0.5, 4, lambda p: 2 * p - 0.5)
    assert [ramp.alphas(step) for step in range(5)] == [(0.0,), (0.0,), (0.25,), (0.5,), (0.5,)]


@pytest.mark.parametrize(
    "schedule",
    [lambda p: 1 - p, lambda p: float("nan"), lambda p: math.sin(9 * p), lambda p: "x"],
)
def test_a_callable_that_is_no_schedule(schedule):
    with pytest.raises(ValueError, match=r"schedule: expected a monotone function.*got"):
        Ramp((0.0,), 1.0, 10, schedule)


@pytest.mark.parametrize("to", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_target_that_cannot_be(to):
    with pytest.raises(ValueError, match=r"to: expected a number between 0 and 1; got "):
        Ramp((0.0,), to, 10, resolve("linear"))


@pytest.mark.parametrize("steps", [-1, 1.5, True, "3"])
def test_steps_that_cannot_be(steps):
    with pytest.raises(ValueError, match=r"steps: expected a whole number, 0 or more; got "):
        Ramp((0.0,), 1.0, steps, resolve("linear"))


def test_no_steps_are_at_once():
    assert Ramp((0.0, 0.5), 0.75, 0, resolve("cosine")).alphas(0) == (0.75, 0.75)
    late = Ramp((0.0,), 1.0, 0, resolve("linear"), warmup=2)
    assert [late.alphas(step) for step in range(4)] == [(0.0,), (0.0,), (1.0,), (1.0,)]


def test_resolve():
    def own(progress):
        return progress

    assert resolve("cosine") is SCHEDULES["cosine"]
    assert resolve(own) is own
    with pytest.raises(ValueError, match=r"schedule: expected one of linear, cosine, sigmoid.*'quadratic'"):
        resolve("quadratic")


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_a_warm_up_holds_alpha_and_then_the_ramp_is_the_same(name: str) -> None:
    plain = Ramp((0.25,), 1.0, 8, SCHEDULES[name])
    warm = Ramp((0.25,), 1.0, 8, SCHEDULES[name], warmup=3)
    assert [warm.alphas(step) for step in range(4)] == [(0.25,)] * 4
    assert [warm.alphas(step + 3) for step in range(9)] == [plain.alphas(step) for step in range(9)]
    assert warm.length == 11


@pytest.mark.parametrize("warmup", [-1, 1.5, True, None])
def test_a_warm_up_that_is_no_number_of_steps_is_refused(warmup: object) -> None:
    with pytest.raises(ValueError, match="warmup: expected a whole number"):
        Ramp((0.0,), 1.0, 4, SCHEDULES["linear"], warmup)  # type: ignore[arg-type]
