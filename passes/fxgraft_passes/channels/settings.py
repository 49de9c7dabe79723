"""Numbers in code that depend on how many channels there are: ``self.n_head``, ``view(2, 7, 12, 64)``.

A layer of torch has them in attributes that are known. In other code they are found by trying. The analysis
says of which shape everything is that a run makes once a group has grown. Where a run with the wider tensors
first makes something else, or fails, a number of the module that does so, that is one of the sizes that grow,
is the new size from then on, if the run then goes on as it should. What goes on to its end fits; that it
computes the same is checked as well, with values, before anything is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch.fx as fx
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxgraft_passes.channels.recording import Recording, name_of, tensors_in
from fxgraft_passes.channels.subject import Subject
from fxgraft_passes.errors import ChannelError


@dataclass(frozen=True)
class Setting:
    """A number of a module, and what it becomes.

    Attributes:
        path: the module.
        name: the attribute; of a number in the graph of a ``GraphModule``, ``"graph:<node>"``.
        place: which item, of a tuple, or of the arguments of a node.
        old, new: the values.
    """

    path: str
    name: str
    place: int | None
    old: Any
    new: Any

    def apply(self, subject: Subject) -> Callable[[], None]:
        """Set it; returns what sets it back."""
        module = subject.modules[self.path]
        if self.name.startswith("graph:"):
            assert isinstance(module, fx.GraphModule)
            return self._apply_to_node(module)
        before = module.__dict__[self.name]
        new = self.new
        if self.place is not None:
            new = type(before)([*before[: self.place], self.new, *before[self.place + 1 :]])
        module.__dict__[self.name] = new

        def undo() -> None:
            module.__dict__[self.name] = before

        return undo

    def _apply_to_node(self, module: fx.GraphModule) -> Callable[[], None]:
        node = next(n for n in module.graph.nodes if n.name == self.name.partition(":")[2])
        before = node.args, node.kwargs
        leaves, form = pytree.tree_flatten(before, is_leaf=_is_leaf)
        assert self.place is not None
        leaves[self.place] = self.new
        node.args, node.kwargs = pytree.tree_unflatten(leaves, form)
        module.recompile()

        def undo() -> None:
            node.args, node.kwargs = before
            module.recompile()

        return undo


def _is_leaf(value: Any) -> bool:
    return isinstance(value, (slice, fx.Node))


@contextmanager
def applied(settings: Sequence[Setting], subject: Subject) -> Iterator[None]:
    """With these settings inside."""
    undo: list[Callable[[], None]] = []
    try:
        for setting in settings:
            undo.append(setting.apply(subject))
        yield
    finally:
        for back in reversed(undo):
            back()


@dataclass(frozen=True)
class Outcome:
    """How far a run came as it should.

    Attributes:
        progress: how many operations did what was expected.
        at: the module of the first that did not, or None.
        why: what happened there.
    """

    progress: int
    at: str | None = None
    why: str = ""


class CannotRunWiderError(ChannelError):
    """The model does not run with wider tensors.

    Attributes:
        at: the module that does not.
    """

    def __init__(self, at: str, why: str):
        super().__init__(f"{at or 'the model itself'} does not run with more of them: {why}")
        self.at = at


Expected = Sequence[tuple[Any, list[tuple[int, ...]]]]
"""The operations of a run, and the shapes of what they make."""


def fit(
    subject: Subject,
    wide: Mapping[str, Tensor],
    numbers: Mapping[int, Sequence[int]],
    known: Sequence[Setting],
    expected: Mapping[bool, Expected],
) -> list[Setting]:
    """The numbers that have to be others for the model to run with ``wide``, inside of a session.

    Args:
        subject: the model.
        wide: the tensors that are wider, by their paths.
        numbers: sizes now -> what they may be then.
        known: settings that are known.
        expected: train or eval -> what the model does then.

    Raises:
        CannotRunWiderError: it does not run with any.
    """
    found = list(known)

    def tried(settings: Sequence[Setting]) -> Outcome:
        total = 0
        for mode, operations in expected.items():
            outcome = _run(subject, wide, settings, mode, operations)
            if outcome.at is not None:
                return replace(outcome, progress=total + outcome.progress)
            total += outcome.progress
        return Outcome(total)

    outcome = tried(found)
    while outcome.at is not None:
        for more in _candidates(subject, outcome.at, numbers, found):
            further = tried([*found, *more])
            if further.progress > outcome.progress:
                found, outcome = [*found, *more], further
                break
        else:
            raise CannotRunWiderError(str(outcome.at), outcome.why)
    return found


def _run(
    subject: Subject,
    wide: Mapping[str, Tensor],
    settings: Sequence[Setting],
    training: bool,
    expected: Expected,
) -> Outcome:
    recording, failed = Recording(), ""
    with applied(settings, subject):
        try:
            subject.record(wide, training, recording)
        except Exception as error:
            failed = f"{recording.latest}: {type(error).__name__}: {error}".splitlines()[0]
    done = 0
    for operation, (target, shapes) in zip(recording.operations, expected, strict=False):
        made = [tuple(tensor.shape) for tensor in tensors_in(operation.result)]
        if operation.target != target:
            why = f"{operation.name} comes where {name_of(target)} did: the code goes another way"
            return Outcome(done, operation.module, why)
        if made != shapes:
            return Outcome(done, operation.module, f"{operation.name} makes {made}, not {shapes}")
        done += 1
    if failed or done < max(len(expected), len(recording.operations)):
        return Outcome(done, recording.at, failed or "its code goes another way")
    return Outcome(done)


def _candidates(
    subject: Subject, at: str, numbers: Mapping[int, Sequence[int]], found: Sequence[Setting]
) -> Iterator[list[Setting]]:
    """What may be set next: in the module that fails, then in those around it; one by one, then together."""
    taken = {(s.path, s.name, s.place) for s in found}
    path = at
    while True:
        own = [s for s in _numbers_of(path, subject.modules.get(path), numbers) if _key(s) not in taken]
        yield from ([setting] for setting in own)
        for i, first in enumerate(own):
            yield from ([first, second] for second in own[i + 1 :] if _key(first) != _key(second))
        if len({_key(s) for s in own}) > 2:
            yield list({_key(s): s for s in own}.values())
        if not path:
            return
        path = path.rpartition(".")[0]


def _key(setting: Setting) -> tuple[str, str, int | None]:
    return setting.path, setting.name, setting.place


def _numbers_of(
    path: str, module: nn.Module | None, numbers: Mapping[int, Sequence[int]]
) -> Iterator[Setting]:
    if module is None:
        return
    for name, value in module.__dict__.items():
        if type(value) is int:
            yield from (Setting(path, name, None, value, new) for new in numbers.get(value, ()))
        elif isinstance(value, (tuple, list)):
            for i, item in enumerate(value):
                if type(item) is int:
                    yield from (Setting(path, name, i, item, new) for new in numbers.get(item, ()))
    if isinstance(module, fx.GraphModule):
        for node in module.graph.nodes:
            if node.op in ("call_function", "call_method"):
                leaves = pytree.tree_leaves((node.args, node.kwargs), is_leaf=_is_leaf)
                for i, leaf in enumerate(leaves):
                    if type(leaf) is int:
                        yield from (
                            Setting(path, f"graph:{node.name}", i, leaf, new) for new in numbers.get(leaf, ())
                        )


def own_settings(path: str, module: nn.Module, wide: Mapping[str, Tensor]) -> list[Setting]:
    """What a layer of torch says of its sizes, where that changes.

    Args:
        path: the layer's.
        module: the layer.
        wide: its wider tensors, by their names in it.
    """
    found = []
    for cls, name, parameter, dims in _SIZES:
        if isinstance(module, cls) and parameter in wide and name in module.__dict__:
            before, tensor = module.__dict__[name], wide[parameter]
            new = tuple(tensor.shape) if dims is None else tensor.shape[dims]
            if name == "in_channels" and isinstance(module, _CONV):
                new *= _groups(module, tensor)
            if new != before:
                found.append(Setting(path, name, None, before, new))
    if (
        isinstance(module, _CONV)
        and "weight" in wide
        and (groups := _groups(module, wide["weight"])) != module.groups
    ):
        found.append(Setting(path, "groups", None, module.groups, groups))
    if isinstance(module, nn.GroupNorm) and "weight" in wide:  # each group stays as large as it is
        groups = wide["weight"].shape[0] // (module.num_channels // module.num_groups)
        if groups != module.num_groups:
            found.append(Setting(path, "num_groups", None, module.num_groups, groups))
    return list({(s.path, s.name, s.place): s for s in found}.values())


def _groups(module: Any, weight: Tensor) -> int:
    """Of a convolution in groups, whole groups grow."""
    each = module.out_channels // module.groups
    return 1 if module.groups == 1 else int(weight.shape[0] // each)


_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORM = nn.modules.batchnorm._NormBase
_SIZES: tuple[tuple[Any, str, str, int | None], ...] = (
    (nn.Linear, "out_features", "weight", 0),
    (nn.Linear, "in_features", "weight", 1),
    (_CONV, "out_channels", "weight", 0),
    (_CONV, "in_channels", "weight", 1),
    (_TRANSPOSED, "in_channels", "weight", 0),
    (_TRANSPOSED, "out_channels", "weight", 1),
    (nn.Embedding, "embedding_dim", "weight", 1),
    (_NORM, "num_features", "weight", 0),
    (_NORM, "num_features", "running_mean", 0),
    ((nn.LayerNorm, nn.RMSNorm), "normalized_shape", "weight", None),
    (nn.GroupNorm, "num_channels", "weight", 0),
)
"""Class, attribute, parameter, dimension: the sizes that layers of torch know of themselves."""
