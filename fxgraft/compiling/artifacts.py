"""Compiled code as bytes: made by one process (`build`), run in another (`load`).

An artifact holds forward and backward for one kind of call, and the guards that say for which. It is
a pickle, so it is only ever taken from our own helper process, never from a file of a run.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch._dynamo.aot_compile import AOTCompileUnpickler, CompileArtifacts
from torch._dynamo.guards import CheckFunctionManager
from torch._dynamo.package import SerializedCode, load_guard_manager, load_guards_state

from fxgraft.compiling.calls import CallKind

Entry = Callable[..., Any]
"""``entry(module, *args, **kwargs)``."""


class Artifact:
    """Loaded compiled code for calls of one kind.

    Args:
        code: what runs.
        guards: what checks the local variables of ``entry``.

    Attributes:
        run: ``run(module, *args, **kwargs)``; must only be called where it fits.
    """

    def __init__(self, code: Entry, guards: Any):
        self.run = code
        self._check = guards.check

    def fits(self, module: nn.Module, *args: Any, **kwargs: Any) -> bool:
        """Whether the code is right for this call."""
        fits: bool = self._check({"module": module, "args": args, "kwargs": kwargs})
        return fits


class Loading:
    """An artifact on its way from bytes, in parts of tens of milliseconds each.

    What ``torch.compiler.load_compiled_function`` does at once: the code (here, in any thread), and then,
    on the training thread and in two calls of `advance`, the guards.

    Args:
        data: what `build` made.
        kind: the kind of call that it was made for.
    """

    def __init__(self, data: bytes, kind: CallKind):
        state: dict[str, Any] = AOTCompileUnpickler({}, io.BytesIO(data)).load()  # type: ignore[no-untyped-call]
        deserialize, code = state["compiled_fn"]
        bytecode = SerializedCode.to_code_object(state["runtime_env"].bytecode)
        state["runtime_env"] = replace(state["runtime_env"], bytecode=bytecode)
        state["original_code"] = SerializedCode.to_code_object(state["original_code"])
        with torch._inductor.config.patch(enable_autograd_for_aot=True):
            state["compiled_fn"] = deserialize(code)
        self._parts = CompileArtifacts(**state)
        self._parts.check_compatibility()
        self._kind = kind
        self._guards: Any = None

    def advance(self) -> Artifact | None:
        """Go on by one part; return the artifact when it is whole."""
        parts = self._parts
        with self._kind.surroundings():  # guards on tensors are made anew, for the dispatch keys of now
            if self._guards is None:
                self._guards = load_guards_state(parts.guards_state)
                return None
            run = parts.runtime_env.forward_callable(parts.backend_id, parts.compiled_fn)
            return Artifact(run, load_guard_manager(self._guards, parts.original_code, run.__globals__))


def build(
    entry: Entry, module: nn.Module, kind: CallKind, options: Mapping[str, Any], *others: nn.Module
) -> bytes:
    """Compile ``entry(module, ...)`` for one kind of call, in the helper.

    Gradients of parameters must be None: guards on tensors that have one cannot be loaded. Raises
    whatever the compiler does.

    Args:
        entry: a function over a code object of its own.
        module: the unit.
        kind: the call.
        options: of ``torch.compile``.
        others: further modules to bring into the kind's mode.
    """
    compiled: Any = torch.compile(entry, **{**_with_filter(options), "fullgraph": True})
    with kind.made_up(module, *others) as (args, kwargs):
        made = compiled.aot_compile(((module, *args), kwargs))
    _name_modules(made._artifacts, entry.__globals__)
    data: bytes = type(made).serialize(made).serialized_data
    return data


def _name_modules(parts: CompileArtifacts, scope: Mapping[str, Any]) -> None:
    """Let the code import the modules that it finds in this process under names made up for it."""
    env = parts.runtime_env
    found = {name: scope.get(name) for name in env.external_refs}
    modules = {name: value.__name__ for name, value in found.items() if isinstance(value, ModuleType)}
    parts.runtime_env = replace(env, import_sources={**env.import_sources, **modules})


def _with_filter(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of ``torch.compile`` with a filter for guards that cannot be serialized.

    Its own filter for artifacts overlooks guards that hold one of those inside. What they guard, the
    identity of code and classes, does not change while a variant is in use.
    """
    given = dict(options)
    mode, backend = given.pop("mode", None), given.get("backend", "inductor")
    if mode is not None and backend != "inductor":
        return dict(options)  # a mode leaves no room for options; only Inductor's modes are options
    own = dict(given.pop("options", None) or (torch._inductor.list_mode_options(mode) if mode else {}))
    return {**given, "options": {"guard_filter_fn": _serializable, **own}}


def _serializable(guards: Sequence[Any]) -> list[bool]:
    refused = set(CheckFunctionManager.UNSUPPORTED_SERIALIZATION_GUARD_TYPES)
    return [not g.is_global and refused.isdisjoint((g.guard_type, *g.derived_guard_types)) for g in guards]
