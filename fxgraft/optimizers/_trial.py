"""Whether an optimizer that is not known updates each parameter separately: tried on dummy parameters.

A twin of the optimizer, with its settings and without its state, takes a few steps with two small parameters,
one for the host and one for a seed. The host's must move to the same bits whatever gradients the seed's has,
and without it; the seed's must move; and nothing of it may be left when it is taken out.
"""

from __future__ import annotations

import copy
import gc
import random
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fxgraft.optimizers.removal import take_out
from fxgraft.util.bits import same_tensor

_STEPS, _SIDE = 3, 8
_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
_known: weakref.WeakKeyDictionary[Optimizer, dict[object, str | None]] = weakref.WeakKeyDictionary()


def why_not(optimizer: Optimizer, group: Mapping[str, Any], parameter: nn.Parameter) -> str | None:
    """Why ``optimizer`` must not have such a ``parameter`` of a seed in its ``group``; None if it may.

    Changes nothing. What was found is remembered for settings that differ by numbers only.
    """
    shape = tuple(min(size, _SIDE) for size in parameter.shape)
    flags = sorted((key, repr(value)) for key, value in group.items() if isinstance(value, (bool, str)))
    key = (shape, parameter.dtype, tuple(flags))
    found = _known.setdefault(optimizer, {})
    if key not in found:
        with _random_streams_kept():
            found[key] = _tried(optimizer, group, shape, parameter.dtype)
    return found[key]


def _tried(
    optimizer: Optimizer, group: Mapping[str, Any], shape: tuple[int, ...], dtype: torch.dtype
) -> str | None:
    kind = type(optimizer).__name__
    if isinstance(getattr(type(optimizer), "param_groups", None), property):
        return f"{kind} only passes on what another optimizer holds: give the manager that one in its place"
    trial = _Trial(optimizer, group, shape, dtype)
    try:
        alone, small, large = trial.run(None), trial.run(1.0), trial.run(100.0)
    except Exception as error:
        raised = _describe_error(error)
        return f"{kind} was tried on a stand-in of {len(shape)} dimension(s), and raised {raised}"
    if not same_tensor(small.host, large.host) or not same_tensor(small.host, alone.host):
        return (
            f"{kind} was tried on stand-ins, and moves a parameter by the gradients of others too: an "
            f"isolated seed would affect the host"
        )
    if not small.moved:
        return f"{kind} was tried on a stand-in of {len(shape)} dimension(s), and does not train it"
    if small.is_left:
        return (
            f"{kind} was tried on a stand-in, and keeps what belongs to it elsewhere than in its state: a "
            f"cull would leave that behind"
        )
    return None


@dataclass
class _Outcome:
    host: Tensor
    moved: bool
    is_left: bool


class _Trial:
    def __init__(
        self, optimizer: Optimizer, group: Mapping[str, Any], shape: tuple[int, ...], dtype: torch.dtype
    ):
        self._optimizer, self._shape, self._dtype = optimizer, shape, dtype
        self._settings = {k: copy.deepcopy(v) for k, v in group.items() if k not in ("params", "param_names")}
        if "lr" in self._settings and float(self._settings["lr"]) == 0:  # at the start of a warm-up
            self._settings["lr"] = self._settings["lr"] + 1e-3
        self._like: Tensor = next((p for p in group["params"] if not p.is_meta), torch.empty(_SIDE, _SIDE))

    def run(self, gradient_scale: float | None) -> _Outcome:
        """Make some steps, with a dummy seed parameter or without one.

        Args:
            gradient_scale: factor of the gradients of the dummy parameter; None: there is none.
        """
        generator = torch.Generator("cpu").manual_seed(0)
        like = self._like.detach()
        of_host = [_random(like.shape, generator).to(like) for _ in range(1 + _STEPS)]
        of_seed = [_random(self._shape, generator).to(like.device, self._dtype) for _ in range(1 + _STEPS)]
        members, gradients = [nn.Parameter(of_host[0].clone())], [of_host[1:]]
        if gradient_scale is not None:
            members.append(nn.Parameter(of_seed[0].clone()))
            gradients.append([gradient * gradient_scale for gradient in of_seed[1:]])
        twin = _twin(self._optimizer, [self._group(members)], {})
        for step in range(_STEPS):
            _step(twin, partial(_closure, members, [grads[step] for grads in gradients]))
        host = members[0].detach()
        if gradient_scale is None:
            return _Outcome(host, True, False)
        moved = not same_tensor(members[1].detach(), of_seed[0])
        take_out([twin], [], members[1:])
        left = weakref.ref(members.pop())
        if left() is not None:
            gc.collect()
        return _Outcome(host, moved, left() is not None)

    def _group(self, members: list[nn.Parameter]) -> dict[str, Any]:
        named = "param_names" in self._optimizer.param_groups[0]
        names = {"param_names": [str(place) for place in range(len(members))]} if named else {}
        return {**self._settings, **names, "params": list(members)}


def _closure(members: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> float:
    """The backward pass of a loss, in which the gradient of each parameter depends on where that is."""
    for parameter, gradient in zip(members, gradients, strict=True):
        parameter.grad = gradient + parameter.detach()
    return 0.0


def _step(twin: Optimizer, closure: Callable[[], float]) -> None:
    """Past what schedulers have put around the step of the very optimizer."""
    closure()
    try:
        type(twin).step(twin)
    except Exception:
        with torch.enable_grad():
            type(twin).step(twin, closure)


def _twin(optimizer: Optimizer, groups: list[dict[str, Any]], known: dict[int, Any]) -> Optimizer:
    """An optimizer of that class with these groups and no state, and likewise those in it."""
    twin: Optimizer = type(optimizer).__new__(type(optimizer))
    known[id(optimizer)] = twin
    for name, value in vars(optimizer).items():
        if name in ("param_groups", "state", "step", "zero_grad", *_HOOKS):
            continue
        if isinstance(value, Optimizer):
            twin.__dict__[name] = known.get(id(value)) or _twin(value, groups, known)
        else:
            twin.__dict__[name] = _copied(value)
    twin.__dict__.update({hooks: OrderedDict() for hooks in _HOOKS})
    twin.__dict__.update(param_groups=groups, state=defaultdict(dict))
    return twin


def _copied(value: Any) -> Any:
    """Containers and generators anew; what is in them, and anything else, as it is."""
    if isinstance(value, torch.Generator):
        return value.clone_state()
    if isinstance(value, Mapping) and type(value) in (dict, OrderedDict, defaultdict):
        anew = copy.copy(value)
        anew.update({key: _copied(item) for key, item in value.items()})  # type: ignore[attr-defined]
        return anew
    if type(value) in (list, tuple, set, deque):
        return type(value)(map(_copied, value))
    return value


def _random(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn([min(size, _SIDE) for size in shape], generator=generator, device=generator.device)


def _describe_error(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    return text if len(text) <= 160 else text[:157] + "..."


@contextmanager
def _random_streams_kept() -> Iterator[None]:
    ours, pythons = torch.get_rng_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(ours)
        random.setstate(pythons)
