"""Every blend operator's value and gradients against formulas written out by hand."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from fxgraft.util.bits import same_bits
from fxgraft_passes import operators
from fxgraft_passes.objectives import seed_gradient

EPS = torch.finfo(torch.float64).eps
ALPHAS = (0.0, 1e-300, EPS, 0.3, 0.5, 1 - EPS, 1.0)
SPECIAL = (0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1.5)
LAW = ("straight_through", 0.1)
TRUST = ("trust", 0.1)
BLENDS = {"residual": operators.residual, "convex": operators.convex}


@pytest.fixture
def values():
    """h, s and g in float64."""
    return [torch.randn(3, 4, dtype=torch.float64) for _ in range(3)]


def scalar(value, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype)


def run(operator, h, s, g, *rest):
    """The value, and the gradients of ``h`` and ``s`` under ``g``."""
    h, s = h.detach().requires_grad_(), s.detach().requires_grad_()
    out = operator(h, s, *rest)
    out.backward(g)
    return out.detach(), h.grad, s.grad


def by_hand(mode, h, s, g, alpha):
    """The end values exactly; in between the formula in plain tensors, and its gradients."""
    if alpha == 0:
        value = h
    elif alpha == 1:
        value = h + s if mode == "residual" else s
    else:
        value = h + alpha * s if mode == "residual" else torch.lerp(h, s, alpha)
    return value, g if mode == "residual" else g - alpha * g, alpha * g


@pytest.mark.parametrize(("mode", "alpha"), list(product(BLENDS, ALPHAS)))
def test_blends(mode, alpha, values):
    h, s, g = values
    value, to_host, to_seed = run(BLENDS[mode], h, s, g, scalar(alpha), None, *TRUST)
    expected = by_hand(mode, h, s, g, alpha)
    assert same_bits(value, expected[0])
    torch.testing.assert_close(to_host, expected[1], rtol=4 * EPS, atol=4 * EPS)
    assert same_bits(to_seed, expected[2])
    if mode == "residual" or alpha == 0:
        assert same_bits(to_host, g)
    if mode == "convex" and alpha == 1:
        assert not to_host.any()


@pytest.mark.parametrize(("mode", "alpha"), list(product(BLENDS, ALPHAS)))
def test_gradients_are_those_of_plain_autograd_along_the_direct_path(mode, alpha, values):
    h, s, g = values
    x, y = h.clone().requires_grad_(), s.clone().requires_grad_()
    plain = x + alpha * y if mode == "residual" else (1 - alpha) * x + alpha * y
    expected = torch.autograd.grad(plain, (x, y), g)
    _, to_host, to_seed = run(BLENDS[mode], h, s, g, scalar(alpha), None, *TRUST)
    torch.testing.assert_close(to_host, expected[0], rtol=4 * EPS, atol=0)
    torch.testing.assert_close(to_seed, expected[1], rtol=4 * EPS, atol=0)


@pytest.mark.parametrize(("mode", "special"), list(product(BLENDS, SPECIAL)))
@pytest.mark.parametrize("learning", [None, True, False])
def test_at_zero_the_bits_of_the_host_whatever_the_seed_holds(mode, special, learning, values):
    _, s, g = values
    h = torch.tensor(SPECIAL[:4], dtype=torch.float64).expand(3, 4).clone()
    s = s.clone().fill_(special)
    flag = None if learning is None else torch.tensor(learning)
    value, to_host, to_seed = run(BLENDS[mode], h, s, g, scalar(0.0), flag, *TRUST)
    assert same_bits(value, h)
    assert same_bits(to_host, g)
    if not learning:
        assert same_bits(to_seed, 0 * g)


@pytest.mark.parametrize("special", SPECIAL)
def test_at_one_exactly_the_end_value_whatever_both_hold(special, values):
    h, _, g = values
    specials = torch.tensor(SPECIAL[:4], dtype=torch.float64).expand(3, 4)
    h = h.clone().fill_(special)
    assert same_bits(run(operators.convex, h, specials, g, scalar(1.0), None, *TRUST)[0], specials)
    assert same_bits(run(operators.residual, h, specials, g, scalar(1.0), None, *TRUST)[0], h + specials)


@pytest.mark.parametrize(("mode", "objective"), list(product(BLENDS, ("trust", "trust_step", "shadow"))))
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_learning_seed_is_given_its_objective(mode, objective, alpha, values):
    h, s, g = values
    branch = s if mode == "residual" else s - h
    expected = seed_gradient(objective, 0.1, g, h, branch)
    assert objective != "trust" or not torch.equal(expected, g)
    learning = torch.tensor(True)
    _, to_host, to_seed = run(BLENDS[mode], h, s, g, scalar(alpha), learning, objective, 0.1)
    assert same_bits(to_seed, expected)
    assert same_bits(to_host, by_hand(mode, h, s, g, alpha)[1])
    learning.fill_(False)
    assert same_bits(run(BLENDS[mode], h, s, g, scalar(alpha), learning, objective, 0.1)[2], alpha * g)


@pytest.mark.parametrize(
    ("mode", "objective"), list(product(BLENDS, ("trust", "trust_step", "straight_through")))
)
@pytest.mark.parametrize("copy", [False, True])
def test_isolated(mode, objective, copy, values):
    h, s, g = values
    value, to_host, to_seed = run(operators.isolated, h, s, g, mode, objective, 0.1, copy)
    assert same_bits(value, h)
    assert same_bits(to_host, g)
    assert same_bits(to_seed, seed_gradient(objective, 0.1, g, h, s if mode == "residual" else s - h))
    assert (value.data_ptr() == h.data_ptr()) is not copy


@pytest.mark.parametrize("special", SPECIAL)
def test_isolated_passes_the_host_by_whatever_the_seed_holds(special, values):
    h, s, g = values
    h[0, :4] = torch.tensor(SPECIAL[1:5])
    value, to_host, _ = run(operators.isolated, h, s.fill_(special), g, "residual", *TRUST, False)
    assert same_bits(value, h)
    assert same_bits(to_host, g)


def test_isolated_hands_the_very_gradient_on():
    h, g, seen = torch.randn(3).requires_grad_(), torch.randn(3), []
    out = operators.isolated(h, torch.randn(3), "residual", *TRUST)
    h.register_hook(lambda grad: seen.append(grad.data_ptr()))
    torch.autograd.backward(out, g)
    assert seen == [g.data_ptr()]


def test_isolated_shadow_gives_the_seed_nothing(values):
    h, s, g = values
    _, to_host, to_seed = run(operators.isolated, h, s, g, "residual", "shadow", 0.1)
    assert same_bits(to_host, g)
    assert to_seed is None


@pytest.fixture(params=["looked at", "never looked at"])
def flags(request, monkeypatch):
    """Flags whose values are free to look at (eager, on a CPU), and as they are everywhere else."""
    if request.param == "never looked at":
        monkeypatch.setattr(operators, "is_free_to_look_at", lambda flag: False)
    return request.param


@pytest.mark.parametrize("released", [False, True])
def test_release(released, flags):
    g = torch.tensor(SPECIAL, dtype=torch.float64)
    h = torch.tensor(SPECIAL, dtype=torch.float64).requires_grad_()
    out = operators.release(h, torch.tensor(released))
    assert same_bits(out, h)
    assert out.data_ptr() == h.data_ptr()
    assert out.requires_grad is (released or flags == "never looked at")
    if out.requires_grad:
        out.backward(g)
        assert same_bits(h.grad, g if released else torch.full_like(g, -0.0))


@pytest.mark.parametrize("first", [-0.0, 0.0, 2.5, float("inf"), float("nan")])
def test_release_adds_exactly_nothing(first, flags):
    h = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    direct = torch.full((2,), first, dtype=torch.float64)
    held = operators.release(h, torch.tensor(False)) + torch.zeros(2, requires_grad=True)
    torch.autograd.backward([h.view_as(h), held], [direct, torch.ones_like(direct)])
    assert same_bits(h.grad, direct)


@pytest.mark.parametrize(("mode", "alpha"), list(product(BLENDS, ALPHAS)))
def test_shadowed(mode, alpha, values):
    h, s, g = values
    value, _, to_seed = run(operators.shadowed, h, s, g, scalar(alpha), torch.tensor(True), mode)
    assert same_bits(value, by_hand(mode, h, s, g, 1)[0])
    torch.testing.assert_close(to_seed, g, rtol=4 * EPS, atol=0)
    value, to_host, to_seed = run(operators.shadowed, h, s, g, scalar(alpha), torch.tensor(False), mode)
    expected = by_hand(mode, h, s, g, alpha)
    assert same_bits(value, expected[0])
    torch.testing.assert_close(to_host, expected[1], rtol=4 * EPS, atol=4 * EPS)
    torch.testing.assert_close(to_seed, expected[2], rtol=4 * EPS, atol=0)


@pytest.mark.parametrize(("mode", "alpha"), list(product(BLENDS, ALPHAS)))
def test_folded(mode, alpha, values):
    h, s, g = values
    value, to_host, to_seed = run(operators.folded, h, s, g, mode, alpha)
    expected = by_hand(mode, h, s, g, alpha)
    torch.testing.assert_close(value, expected[0], rtol=4 * EPS, atol=4 * EPS)
    torch.testing.assert_close(to_host, expected[1], rtol=4 * EPS, atol=4 * EPS)
    torch.testing.assert_close(to_seed, expected[2], rtol=4 * EPS, atol=0)


@pytest.mark.parametrize("mode", BLENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_folded_is_the_blend_that_was_held(mode, dtype):
    h, s = torch.randn(64).to(dtype), torch.randn(64).to(dtype)
    alpha = scalar(0.3, torch.promote_types(dtype, torch.float32))
    blend, fossil = BLENDS[mode](h, s, alpha, None, *TRUST), operators.folded(h, s, mode, 0.3)
    # torch rounds a tensor alpha to half precision before it multiplies, and a constant only after.
    bound = torch.finfo(dtype).eps * (h.abs() + s.abs()) if dtype.itemsize < 4 else 0
    assert ((fossil - blend).abs() <= bound).all()
    assert dtype.itemsize < 4 or same_bits(fossil, blend)


def test_backward_uses_the_alpha_and_flags_of_its_forward(values):
    h, s, g = values
    for mode, blend in BLENDS.items():
        x, y = h.clone().requires_grad_(), s.clone().requires_grad_()
        alpha, learning = scalar(0.3), torch.tensor(False)
        out = blend(x, y, alpha, learning, *TRUST)
        alpha.fill_(0.9)
        learning.fill_(True)
        out.backward(g)
        assert same_bits(y.grad, 0.3 * g)
        torch.testing.assert_close(x.grad, by_hand(mode, h, s, g, 0.3)[1])
    x, released = h.clone().requires_grad_(), torch.tensor(True)
    out = operators.release(x, released)
    released.fill_(False)
    out.backward(g)
    assert same_bits(x.grad, g)


HALVES = [
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float64, torch.float32),
]


@pytest.mark.parametrize("dtypes", HALVES)
@pytest.mark.parametrize(
    ("mode", "shape"),
    [("residual", ()), ("residual", (4,)), ("convex", ())],
    ids=["residual", "channelwise", "convex"],
)
def test_each_side_keeps_its_dtype(mode, shape, dtypes):
    h, s, g = (
        torch.randn(3, 4).to(dtypes[0]),
        torch.randn(3, 4).to(dtypes[1]),
        torch.randn(3, 4).to(dtypes[0]),
    )
    alpha = torch.full(shape, 0.3, dtype=torch.float64 if dtypes[0] is torch.float64 else torch.float32)
    for learning in (None, torch.tensor(True), torch.tensor(False)):
        value, to_host, to_seed = run(BLENDS[mode], h, s, g, alpha, learning, *TRUST)
        assert (value.dtype, to_host.dtype, to_seed.dtype) == (dtypes[0], dtypes[0], dtypes[1])
        exact = by_hand(mode, h.double(), s.to(dtypes[0]).double(), g.double(), 0.3)
        torch.testing.assert_close(value.double(), exact[0], rtol=2e-2, atol=2e-2)
        assert learning is not None or mode != "residual" or same_bits(to_host, g)
    value, to_host, to_seed = run(operators.isolated, h, s, g, mode, *TRUST)
    assert same_bits(value, h)
    assert same_bits(to_host, g)
    assert to_seed.dtype is dtypes[1]
    assert torch.isfinite(to_seed).all()
    value, _, _ = run(operators.shadowed, h, s, g, alpha, torch.tensor(True), mode)
    assert value.dtype is dtypes[0]
    value, _, _ = run(operators.folded, h, s, g, mode, 0.3)
    assert value.dtype is dtypes[0]


@pytest.mark.parametrize("dtypes", [*HALVES, (torch.float16, torch.float16), (torch.float32, torch.float32)])
@pytest.mark.parametrize("mode", BLENDS)
def test_the_bits_are_the_same_where_alpha_is_looked_at_and_where_not(mode, dtypes, monkeypatch):
    """In half precision torch rounds ``alpha * g`` otherwise than ``g * alpha``."""
    h, s, g = (
        torch.randn(3, 40).to(dtypes[0]),
        torch.randn(3, 40).to(dtypes[1]),
        torch.randn(3, 40).to(dtypes[0]),
    )
    kind = torch.float64 if dtypes[0] is torch.float64 else torch.float32
    for alpha in (1e-6, 0.3, 0.7, 1.0):
        looked = run(BLENDS[mode], h, s, g, scalar(alpha, kind), None, *TRUST)
        with monkeypatch.context() as never:
            never.setattr(operators, "is_free_to_look_at", lambda flag: False)
            assert same_bits(looked, run(BLENDS[mode], h, s, g, scalar(alpha, kind), None, *TRUST)), alpha


def layouts():
    return {
        "contiguous": torch.randn(2, 3, 4, 5),
        "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "transposed": torch.randn(2, 3, 5, 4).transpose(2, 3),
        "strided": torch.randn(2, 3, 4, 10)[..., ::2],
        "expanded": torch.randn(2, 3, 4, 1).expand(2, 3, 4, 5),
        "empty": torch.randn(0, 3, 4, 5),
    }


@pytest.mark.parametrize("layout", layouts())
def test_layouts(layout):
    h = layouts()[layout]
    s, g = torch.randn_like(h), torch.randn(h.shape)
    for mode, alpha in product(BLENDS, (0.0, 0.3, 1.0)):
        operands = (scalar(alpha, torch.float32), torch.tensor(True), *TRUST)
        actual = run(BLENDS[mode], h, s, g, *operands)
        expected = run(BLENDS[mode], h.contiguous(), s.contiguous(), g, *operands)
        assert same_bits(actual[:2], expected[:2])
        torch.testing.assert_close(actual[2], expected[2])
    assert operators.isolated(h, s, "residual", *TRUST).stride() == h.stride()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "empty"])
def test_dense_values_keep_their_strides(layout):
    h = layouts()[layout]
    s = torch.randn(h.shape)
    assert operators.isolated(h, s, "residual", *TRUST, True).stride() == h.stride()
    like = torch.empty_like(h).copy_(s)
    for blend, alpha in product(BLENDS.values(), (0.0, 0.3, 1.0)):
        assert blend(h, like, scalar(alpha, torch.float32), None, *TRUST).stride() == h.stride()


def operations() -> dict[str, object]:
    """Every operator as a function of h, s, alpha, flag."""
    compiled: dict[str, object] = {
        f"isolated-{mode}-{objective}": lambda h, s, a, f, m=mode, o=objective: operators.isolated(
            h, s, m, o, 0.1
        )
        for mode, objective in product(BLENDS, ("trust", "trust_step"))
    }
    for mode, blend in BLENDS.items():
        compiled[f"{mode}-learning"] = lambda h, s, a, f, b=blend: b(h, s, a, f, *TRUST)
        compiled[f"{mode}-settled"] = lambda h, s, a, f, b=blend: b(h, s, a, None, *TRUST)
        compiled[f"{mode}-shadowed"] = lambda h, s, a, f, m=mode: operators.shadowed(h, s, a, f, m)
        compiled[f"{mode}-folded"] = lambda h, s, a, f, m=mode: operators.folded(h, s, m, 0.3)
    compiled["isolated-copy"] = lambda h, s, a, f: operators.isolated(h, s, "residual", *TRUST, True).add_(1)
    # beside the direct path, where the gradient of nothing is exactly nothing
    compiled["release"] = lambda h, s, a, f: h + s * operators.release(h, f)
    return compiled


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", operations())
def test_compiled_has_the_bits_of_eager_and_compiles_once(name):
    function = operations()[name]

    def model(h: Tensor, s: Tensor, alpha: Tensor, flag: Tensor) -> Tensor:
        # as in a host: what the operators are given are computed values
        return function(h * 1, s * 1, alpha, flag) * 2

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.manual_seed(0)
    h, s, g = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, 4)
    h[0], s[1] = torch.tensor([-0.0, 0.0, 1.0, -1.0]), torch.tensor([-0.0, 0.0, 2.0, -2.0])
    alpha, flag = torch.zeros(()), torch.tensor(True)
    run(compiled, h, s, g, alpha, flag)
    with torch.compiler.set_stance("fail_on_recompile"):
        for value, on in product((0.0, 0.3, 1.0), (True, False)):
            alpha.fill_(value)
            flag.fill_(on)
            assert same_bits(run(compiled, h, s, g, alpha, flag), run(model, h, s, g, alpha, flag))


def test_an_isolated_value_has_the_very_strides_of_the_hosts():
    """Also along axes of size 1, by which torch chooses kernels."""
    h = torch.randn(1, 8, 16, 8).permute(0, 3, 1, 2).requires_grad_()
    s = torch.zeros_like(h)
    for copy in (False, True):
        out = operators.isolated(h, s, "residual", "trust", 0.03, copy)
        assert (out.stride(), out.size()) == (h.stride(), h.size())
    for flag in (torch.tensor(True), torch.tensor(False)):
        assert operators.release(h, flag).stride() == h.stride()


def _with_gaps() -> torch.Tensor:
    return torch.randn(3, 4, 8).chunk(2, -1)[0]


def _expanded() -> torch.Tensor:
    return torch.randn(8).expand(3, 4, 8)


def _with_an_axis_of_one() -> torch.Tensor:
    return torch.randn(1, 8, 16, 8).permute(0, 3, 1, 2)


@pytest.mark.parametrize("make", [_with_gaps, _expanded, _with_an_axis_of_one])
@pytest.mark.parametrize("blend", [operators.residual, operators.convex])
@pytest.mark.parametrize("is_of_channels", [False, True])
def test_a_blend_at_alpha_0_has_the_very_strides_of_the_hosts_value_and_gradient(make, blend, is_of_channels):
    h = make().detach().requires_grad_()
    alpha = torch.zeros(h.shape[-1:] if is_of_channels else ())
    for learning in (torch.tensor(True), torch.tensor(False), None):
        out = blend(h[...], torch.randn(h.shape, requires_grad=True), alpha, learning, "trust", 0.03)
        assert out.stride() == h.stride()
        assert torch.equal(out, h)
        found = []
        h.register_hook(lambda g, found=found: found.append(g.stride()))
        out.sum().backward()  # a gradient with one element in all places
        assert set(found) == {(0,) * h.dim()}
