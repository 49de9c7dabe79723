"""Runs of an example call, each as if the others had not been.

What the model holds is looked at once, before the first run, and put back after each: in a model with many
parts that look takes longer than a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxgraft.capture._external_state import ExternalState, ExternalStateWatch
from fxgraft.capture._instruments import Instruments
from fxgraft.capture.first_call import Completion
from fxgraft.capture.intercept import autograd_calls_as_nodes
from fxgraft.errors import TraceError
from fxgraft_passes.snapshot import Snapshot
from fxgraft_passes.untouched import untouched


def as_it_is(root: nn.Module) -> None:
    """Nothing."""


def other_mode(root: nn.Module) -> None:
    """Each module into train mode that is in eval mode, and the other way round."""
    for module in root.modules():
        module.training = not module.training


class ExampleRuns:
    """Runs one example call of a model.

    Args:
        root: the model.
        args, kwargs: of the call.

    Attributes:
        external_state: what the model's code names outside of its modules, and may write into.
        instruments: see what the code reads and writes, in runs that are not quiet.
        completion: what the first call sets once and for all.
    """

    def __init__(self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]):
        self.root, self.args, self.kwargs = root, args, kwargs
        self.external_state = ExternalState()
        self.instruments = Instruments()
        self._is_quiet = False
        self._watch: ExternalStateWatch | None = None
        self.completion = Completion()
        self._before: dict[bool, Snapshot] = {}

    def run(
        self,
        modules: Mapping[str, nn.Module],
        watch: Callable[[nn.Module], Callable[..., Any]],
        prepare: Callable[[nn.Module], object] = as_it_is,
        gradients: bool = True,
        finish: Callable[[Snapshot], object] = lambda before: None,
    ) -> None:
        """Run it once.

        Args:
            modules: by name, those in which something else stands in for ``forward``.
            watch: gives that, for each of them.
            prepare: is given the model before the run.
            gradients: whether they are on.
            finish: called after the run, before anything is put back, with what the model held.

        Raises:
            TraceError: the call fails.
        """
        is_quiet = self._is_quiet
        with (
            self.repeated(prepare, gradients, with_external_state=is_quiet) as before,
            self._watched_external_state(),
        ):
            for module in modules.values():
                module.__dict__["forward"] = watch(module)
            try:
                with nullcontext() if is_quiet else self._instrumented():
                    args, kwargs = pytree.tree_map_only(torch.Tensor, fresh, (self.args, self.kwargs))
                    self.root(*args, **kwargs)
                finish(before)
            except Exception as error:
                mode = "train" if self.root.training else "eval"
                hint = (
                    ". Correct the example, so that model(*example_args, **example_kwargs) runs in both modes"
                )
                if is_without_data(self.root):
                    hint = (
                        ". On the meta device there are no values to look at: choose an example call in "
                        "which the model does not (one without a padding mask, say), or trace it with data"
                    )
                raise TraceError(
                    f"the example call of {type(self.root).__name__} failed in {mode} mode: "
                    f"{type(error).__name__}: {error}{hint}"
                ) from error

    @contextmanager
    def repeated(
        self,
        prepare: Callable[[nn.Module], object] = as_it_is,
        gradients: bool = True,
        with_external_state: bool = False,
    ) -> Iterator[Snapshot]:
        """Run the example call inside as if it had not run, as it is after the first call.

        Args:
            prepare: is given the model first.
            gradients: whether they are on.
            with_external_state: whether the known external state comes back as well. Only where no more of it
                will be found.
        """
        known = self._before.get(with_external_state)
        external = self.external_state.roots(self.root) if with_external_state and known is None else ()
        with (
            untouched(self.root, also=[self.args, self.kwargs, *external], before=known) as before,
            torch.set_grad_enabled(gradients),
        ):
            self._before = {with_external_state: before}  # one of them: it has a copy of each tensor
            self.completion.apply()
            prepare(self.root)
            yield before

    def settle(self, before: Snapshot) -> None:
        """What the first call has set once and for all is set in the later runs; see `first_call`."""
        self.completion = Completion.since(self.root, before)

    def look_again(self) -> None:
        """The model was changed between two runs, or there are no more."""
        self._before.clear()

    @contextmanager
    def quietly(self, external_state: ExternalState) -> Iterator[None]:
        """What code reads and writes is seen inside of `seeing` only: most of it was seen before.

        Args:
            external_state: of an earlier trace.
        """
        own, self.external_state, self._is_quiet = self.external_state, external_state, True
        try:
            yield
        finally:
            self.external_state, self._is_quiet = own, False
            self.look_again()

    @contextmanager
    def seeing(self) -> Iterator[None]:
        """What code reads and writes is seen inside, in each run."""
        if self.instruments.is_used:
            yield
            return
        with self._instrumented():
            self.instruments.see_calls(False)  # until it is asked for
            yield

    @contextmanager
    def _instrumented(self) -> Iterator[None]:
        assert self._watch is not None
        with autograd_calls_as_nodes(), self.instruments.used(self._watch):
            yield

    @contextmanager
    def _watched_external_state(self) -> Iterator[None]:
        """Inside, find what the code changes outside of the model; restore it afterwards."""
        self._watch = watch = ExternalStateWatch(self.external_state, self.root)
        try:
            yield
        finally:
            self._watch = None
            watch.restore()


def is_without_data(model: nn.Module) -> bool:
    """Whether the model is on the meta device."""
    tensors = [*model.parameters(), *model.buffers()]
    return bool(tensors) and all(tensor.is_meta for tensor in tensors)


def fresh(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor for one run: the model may write into its inputs."""
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)
