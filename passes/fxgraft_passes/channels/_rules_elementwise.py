"""Rules of elementwise operations, of operations along one dimension, and of normalisations."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from fxgraft_passes.channels._analysis import MEAN, NORM, Analysis, Normed
from fxgraft_passes.channels._rules_table import Unknown, dims_of, given, one, rule, tensor
from fxgraft_passes.channels.layout import Atom, Layout, Product, fix, mark_use, unify
from fxgraft_passes.channels.recording import Operation, tensors_in

_UNARY = """
abs absolute neg negative __neg__ exp expm1 exp2 log log2 log10 log1p sqrt rsqrt square reciprocal sin cos tan
asin acos atan sinh cosh tanh asinh acosh atanh sigmoid relu relu6 gelu silu mish elu selu celu leaky_relu
hardtanh hardswish hardsigmoid softplus softsign tanhshrink hardshrink softshrink logsigmoid threshold rrelu
erf erfc floor ceil round trunc frac sign clamp clamp_min clamp_max clip nan_to_num logit isnan isinf isfinite
logical_not __invert__ bitwise_not zeros_like ones_like empty_like full_like rand_like randn_like bernoulli
positive __pos__ __abs__ dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout
feature_alpha_dropout native_dropout
relu_ clamp_ clamp_min_ clamp_max_ sigmoid_ tanh_ exp_ sqrt_ rsqrt_ abs_ neg_ square_ elu_ leaky_relu_
hardtanh_ dropout_ fill_ zero_ normal_ uniform_ bernoulli_ requires_grad_
"""

_BINARY = """
add sub mul div true_divide floor_divide remainder fmod pow subtract multiply divide maximum minimum fmax fmin
__add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __div__ __rdiv__ __floordiv__
__pow__ __rpow__ __mod__ __iadd__ __isub__ __imul__ __itruediv__ __idiv__ __ipow__ __and__ __or__ __xor__
__rand__ __ror__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__ eq ne lt le gt ge logical_and logical_or
logical_xor bitwise_and bitwise_or where masked_fill lerp addcmul addcdiv atan2 hypot xlogy rsub copysign
prelu float_power logaddexp add_ sub_ mul_ div_ pow_ masked_fill_ lerp_ addcmul_ addcdiv_ copy_
"""

_SAME = """
clone contiguous detach detach_ to type float double half bfloat16 long int bool cpu cuda type_as data alias
pin_memory
"""


@rule(_UNARY)
@rule(_BINARY)
def elementwise(a: Analysis, operation: Operation) -> None:
    """Tensors of one shape, after broadcasting, to one more."""
    result = one(operation)
    found: list[Layout | None] = [None] * result.dim()
    for value in tensors_in((operation.args, operation.kwargs)):
        layouts = a.of(value)
        for dim in range(result.dim()):
            own = dim - result.dim() + value.dim()
            if own < 0 or value.shape[own] != result.shape[dim]:
                continue
            a.role(value, own, "scale")
            if found[dim] is None:
                found[dim] = layouts[own]
            else:
                unify(layouts[own], found[dim], operation.name)  # type: ignore[arg-type]
    a.make(operation, result, found)


@rule(_SAME)
def same(a: Analysis, operation: Operation) -> None:
    """The first argument, in another dtype, place or memory."""
    source, result = operation.args[0], one(operation)
    if not isinstance(source, Tensor) or source.shape != result.shape:
        raise Unknown("shape")
    a.make(operation, result, a.of(source))
    a.is_reordered(result, source, range(source.dim()))


@rule(
    "softmax log_softmax softmin cumsum cumprod logcumsumexp sort argsort flip roll glu gumbel_softmax "
    "normalize"
)
def along(a: Analysis, operation: Operation) -> None:
    """What is computed over one dimension depends on all of it; others stay."""
    source, result = operation.args[0], operation.result
    dims = dims_of(_dim(operation, along=True), source.dim())
    layouts: list[Layout | None] = list(a.of(source))
    for dim in dims:
        fix(a.of(source)[dim], f"{operation.name} is computed over it")
    for made in tensors_in(result):
        kept = [None if made.shape[i] != source.shape[i] else layouts[i] for i in range(source.dim())]
        a.make(operation, made, kept)


@rule(
    "sum mean var std amax amin max min argmax argmin prod norm logsumexp any all median nansum var_mean "
    "std_mean"
)
def reduced(a: Analysis, operation: Operation) -> None:
    """Dimensions go, or become one; they cannot grow, but for means, which a norm may make up for."""
    source = operation.args[0]
    if len(operation.args) > 1 and isinstance(operation.args[1], Tensor):
        return elementwise(a, operation)  # torch.max(a, b)
    keeps = bool(given(operation, 2, "keepdim", False)) if _dim(operation) is not None else False
    dims = dims_of(_dim(operation), source.dim())
    for dim in dims:
        if operation.target is Tensor.mean or getattr(operation.target, "__name__", "") == "mean":
            mark_use(a.of(source)[dim], MEAN, operation.module)
        else:
            fix(a.of(source)[dim], f"{operation.name} is computed over it")
    for made in tensors_in(operation.result):
        if keeps or made.dim() == source.dim():
            rest: list[Layout | None] = [None if i in dims else own for i, own in enumerate(a.of(source))]
        else:
            rest = [layout for i, layout in enumerate(a.of(source)) if i not in dims]
        a.make(operation, made, rest)
    return None


def _dim(operation: Operation, along: bool = False) -> Any:
    for name in ("dim", "axis", "dims"):
        if name in operation.kwargs:
            return operation.kwargs[name]
    name = getattr(operation.target, "__name__", "")
    place = 2 if name in ("norm", "roll", "normalize") else 1
    if place < len(operation.args) and not isinstance(operation.args[place], bool):
        return operation.args[place]
    if along:
        return {"glu": -1, "sort": -1, "argsort": -1, "normalize": 1}.get(name)
    return None


@rule("""
max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d _max_pool1d _max_pool2d
_max_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
adaptive_max_pool2d adaptive_max_pool3d interpolate upsample upsample_nearest upsample_bilinear
""")
def spatial(a: Analysis, operation: Operation) -> None:
    """Batch and channels stay; the dimensions behind them are computed over, and are others."""
    source, result = operation.args[0], one(operation)
    places = re.search(r"([123])d", operation.name)  # interpolate and its like take a batch always
    kept = source.dim() - int(places[1]) if places else 2
    for layout in a.of(source)[kept:]:
        fix(layout, f"{operation.name} is computed over it")
    a.make(operation, result, [*a.of(source)[:kept], *([None] * (result.dim() - kept))])


@rule("pad")
def padded(a: Analysis, operation: Operation) -> None:
    """Sizes are others where something was added; there nothing can grow."""
    source, result = tensor(operation, 0, "input"), one(operation)
    layouts: list[Layout | None] = []
    for layout, before, after in zip(a.of(source), source.shape, result.shape, strict=True):
        if before != after:
            fix(layout, f"{operation.name} adds to it")
        layouts.append(layout if before == after else None)
    a.make(operation, result, layouts)


@rule("""
arange zeros ones empty full rand randn randint linspace tensor as_tensor eye scalar_tensor new_zeros new_ones
new_empty new_full new_tensor one_hot
""")
def factory(a: Analysis, operation: Operation) -> None:
    """A tensor out of nothing: its sizes are those of what it meets."""
    a.make(operation, one(operation), [None] * one(operation).dim())


@rule("""
cross_entropy nll_loss mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy kl_div
binary_cross_entropy_with_logits cosine_similarity
""")
def compared(a: Analysis, operation: Operation) -> None:
    """A loss depends on all of what it is given."""
    a.refuse(operation, f"{operation.name} is computed over it")


@rule("tril triu tril_ triu_")
def triangle(a: Analysis, operation: Operation) -> None:
    """The last two dimensions are counted."""
    source, result = tensor(operation, 0, "input"), one(operation)
    for layout in a.of(source)[-2:]:
        fix(layout, f"{operation.name} counts it")
    a.make(operation, result, a.of(source))


@rule("layer_norm rms_norm")
def over_the_last(a: Analysis, operation: Operation) -> None:
    """Over the last dimensions, with a weight and a bias for each of their places."""
    x, shape = tensor(operation, 0, "input"), given(operation, 1, "normalized_shape")
    is_layer = getattr(operation.target, "__name__", "") == "layer_norm"
    weight = given(operation, 2, "weight", None)
    bias = given(operation, 3, "bias", None) if is_layer else None
    count = 1 if isinstance(shape, int) else len(shape)
    for value in (weight, bias):
        if isinstance(value, Tensor):
            for ours, theirs in zip(a.of(value), a.of(x)[-count:], strict=True):
                unify(ours, theirs, operation.name)
            a.role(value, 0, "norm")
    for layout in a.of(x)[-count:]:
        mark_use(layout, NORM, operation.name)
        if count > 1:
            fix(layout, f"{operation.name} is computed over {count} dimensions")
    own, off = (None if (found := a.weight(value)) is None else found.path for value in (weight, bias))
    a.norms.append(Normed("layer" if is_layer else "rms", operation.module, own, off, a.of(x)[-1]))
    a.make(operation, one(operation), a.of(x))


@rule("batch_norm instance_norm")
def by_channel(a: Analysis, operation: Operation) -> None:
    """Each channel by itself."""
    x = tensor(operation, 0, "input")
    for place, name in ((1, "running_mean"), (2, "running_var"), (3, "weight"), (4, "bias")):
        _by_channel(a, operation, given(operation, place, name, None), a.of(x)[1])
    a.make(operation, one(operation), a.of(x))


@rule("group_norm")
def by_group(a: Analysis, operation: Operation) -> None:
    """Groups of channels, each by itself: whole groups can grow."""
    x, groups = tensor(operation, 0, "input"), int(given(operation, 1, "num_groups"))
    inner = Atom(x.shape[1] // groups)
    if inner.size != 1:
        fix(inner, f"{operation.name} is computed over each group")
    group: Layout = Atom(groups)
    if groups == 1:
        fix(a.of(x)[1], f"{operation.name} is computed over it")
    unify(a.of(x)[1], Product((group, inner)), operation.name)
    for place, name in ((2, "weight"), (3, "bias")):
        _by_channel(a, operation, given(operation, place, name, None), a.of(x)[1])
    a.make(operation, one(operation), a.of(x))


def _by_channel(a: Analysis, operation: Operation, value: Any, layout: Layout) -> None:
    if isinstance(value, Tensor):
        unify(a.of(value)[0], layout, operation.name)
        a.role(value, 0, "norm")
