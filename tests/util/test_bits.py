"""Comparison to the bit tells apart what == and allclose do not."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxgraft.util.bits import bits, same_bits, same_tensor

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.complex64,
    torch.int64,
    torch.uint8,
    torch.bool,
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_copy_is_the_same_in_any_layout(dtype):
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    assert same_tensor(tensor, tensor.clone())
    assert same_tensor(tensor, tensor.t().contiguous().t())
    other = tensor.clone()
    other[1, 2] = not other[1, 2] if dtype is torch.bool else 7
    assert not same_tensor(tensor, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_signed_zeros_and_nan(dtype):
    zero, nan = torch.zeros(2, dtype=dtype), torch.full((2,), float("nan"), dtype=dtype)
    assert torch.equal(zero, -zero)
    assert not same_tensor(zero, -zero)
    assert not torch.equal(nan, nan)
    assert same_tensor(nan, nan.clone())


@given(st.integers(0, 2**32 - 1), st.integers(0, 31))
def test_every_single_bit_counts(word, position):
    def number(pattern):
        return torch.tensor([pattern - 2**31], dtype=torch.int32).view(torch.float32)

    assert same_tensor(number(word), number(word))
    assert not same_tensor(number(word), number(word ^ (1 << position)))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.zeros(2), torch.zeros(1, 2)),
        (torch.zeros(2), torch.zeros(2, device="meta")),
        (torch.zeros(0, 2), torch.zeros(2, 0)),
        (torch.eye(2), torch.eye(2).to_sparse()),
        (torch.eye(2).to_sparse(), torch.ones(2, 2).to_sparse()),
    ],
)
def test_form_counts(a, b):
    assert not same_tensor(a, b)


def test_tensors_without_elements_or_data():
    assert same_tensor(torch.zeros(0, 3), torch.zeros(0, 3))
    assert same_tensor(torch.zeros(3, device="meta"), torch.ones(3, device="meta"))
    assert same_tensor(torch.eye(2).to_sparse(), torch.eye(2).to_sparse())


def test_lazy_conjugation_and_negation():
    z = torch.tensor([1 + 2j, 3 - 4j])
    assert same_tensor(z.conj(), torch.tensor([1 - 2j, 3 + 4j]))
    assert same_tensor(z.conj().imag, torch.tensor([-2.0, 4.0]))


def test_bits_are_flat_integers():
    assert bits(torch.tensor([[1.0, -0.0]])).tolist() == [0x3F800000, -(2**31)]
    assert bits(torch.tensor([True, False])).tolist() == [1, 0]


def structure():
    return OrderedDict(a=[torch.zeros(2), (1, None, "x")], b={"c": 2.5, "d": torch.ones(1)})


def test_structures():
    assert same_bits(structure(), structure())
    for change in (
        lambda s: s.update(a=[torch.zeros(2), (1, None, "y")]),
        lambda s: s.update(a=[torch.zeros(2), (True, None, "x")]),
        lambda s: s.update(a=[torch.zeros(2), [1, None, "x"]]),
        lambda s: s.update(a=[-torch.zeros(2), (1, None, "x")]),
        lambda s: s["b"].update(c=torch.tensor(2.5)),
        lambda s: s["b"].pop("d"),
    ):
        other = copy.deepcopy(structure())
        change(other)
        assert not same_bits(structure(), other)
        assert not same_bits(other, structure())


def test_objects_are_compared_by_type():
    assert same_bits(object(), object())
    assert not same_bits(object(), slice(1))
    assert not same_bits(torch.zeros(1), None)
