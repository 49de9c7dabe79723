"""The private parts of torch that are used, all of them here.

Each has been seen to work with torch 2.13.0 (the CPU wheel) and 2.14.1 (the CUDA build of PyPI), and says
what happens where it is missing; ``tests/util/test_torch.py`` calls each. What only compiled hosts need is
imported when it is called: the compiler takes a second to import.
"""

from __future__ import annotations

import importlib
import io
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx._symbolic_trace import _create_wrapped_func
from torch.utils.hooks import RemovableHandle

from fxgraft_passes._torch import backward_pass as backward_pass
from fxgraft_passes._torch import constant_when_compiled as constant_when_compiled
from fxgraft_passes._torch import is_constant_when_compiled as is_constant_when_compiled
from fxgraft_passes._torch import is_in_backward as is_in_backward
from fxgraft_passes._torch import is_inside_transform as is_inside_transform
from fxgraft_passes._torch import is_wrapped_by_transform as is_wrapped_by_transform
from fxgraft_passes._torch import unseen_by_modes as unseen_by_modes

_PATCHED = _create_wrapped_func(lambda: None).__code__

FAKE_TENSORS = "torch._subclasses"
"""Where fake tensors are defined. Missing: a host of a model that asks for them exports no program."""

COMPILER_WRAPPERS = ("torch._compile", "torch._dynamo")
"""Modules whose functions stand between a caller and what it calls. Missing: those reads are not seen."""


# Dynamo, AOTAutograd and Inductor


def import_compiler() -> None:
    """Import what compiling needs, so that the first compilation does not. Missing: it is imported later."""
    import torch._dynamo
    import torch._functorch.aot_autograd
    import torch._inductor.compile_fx  # noqa: F401


def forget_compilations() -> None:
    """Free what dynamo has compiled. Missing: the compiler process keeps its memory."""
    torch._dynamo.reset()


def forget_files() -> None:
    """Make Inductor list the files in its folder again. Missing: no code comes from the helper."""
    import torch._inductor.utils

    torch._inductor.utils.clear_caches()


def compiler_configs() -> tuple[Any, ...]:
    """The modules of settings of dynamo, AOTAutograd and Inductor. Missing: no code comes from the helper."""
    import torch._dynamo.config
    import torch._functorch.config
    import torch._inductor.config

    return torch._dynamo.config, torch._functorch.config, torch._inductor.config


def overrides(config: Any) -> dict[str, Any]:
    """What differs from its default in a module of settings, in this thread. Missing: as above."""
    found: dict[str, Any] = config._get_dict(skip_default=True)
    return found


def mark_maybe_dynamic(tensor: Tensor, dimension: int) -> None:
    """Mark a size as dynamic where possible. Missing: each size is compiled separately."""
    torch._dynamo.maybe_mark_dynamic(tensor, dimension)


def mark_static(tensor: Tensor, dimension: int) -> None:
    """Mark a size as constant for compilations. Missing: as above."""
    torch._dynamo.mark_static(tensor, dimension)


def marks_of(tensor: Tensor) -> dict[str, Any]:
    """What `mark_static` and the like have left in a tensor. Missing: as above."""
    return {name: mark for name, mark in tensor.__dict__.items() if name.startswith("_dynamo")}


def mode_options(mode: str) -> dict[str, Any]:
    """The options of a mode of Inductor. Missing: modes compile at the swap."""
    import torch._inductor

    return torch._inductor.list_mode_options(mode)


def unserializable_guards() -> frozenset[str]:
    """The kinds of guards that no artifact can hold. Missing: no code comes from the helper."""
    from torch._dynamo.guards import CheckFunctionManager

    return frozenset(CheckFunctionManager.UNSUPPORTED_SERIALIZATION_GUARD_TYPES)


def artifact_bytes(made: Any, scope: Mapping[str, Any]) -> bytes:
    """What ``torch.compile(...).aot_compile(...)`` made, as bytes. Missing: no code comes from the helper.

    Args:
        made: the compiled function.
        scope: the globals of what was compiled: modules that the code finds there under generated names are
            imported by their own names where it runs.
    """
    parts = made._artifacts
    env = parts.runtime_env
    found = {name: scope.get(name) for name in env.external_refs}
    modules = {name: value.__name__ for name, value in found.items() if isinstance(value, ModuleType)}
    parts.runtime_env = replace(env, import_sources={**env.import_sources, **modules})
    data: bytes = type(made).serialize(made).serialized_data
    return data


class ArtifactParts:
    """What ``torch.compiler.load_compiled_function`` does at once, in three parts.

    Missing: code of the helper cannot be loaded, and compiles at the swap.

    Args:
        data: of `artifact_bytes`. This part is safe off the training thread.
    """

    def __init__(self, data: bytes):
        from torch._dynamo.aot_compile import AOTCompileUnpickler, CompileArtifacts
        from torch._dynamo.package import SerializedCode

        state: dict[str, Any] = AOTCompileUnpickler({}, io.BytesIO(data)).load()  # type: ignore[no-untyped-call]
        deserialize, code = state["compiled_fn"]
        bytecode = SerializedCode.to_code_object(state["runtime_env"].bytecode)
        state["runtime_env"] = replace(state["runtime_env"], bytecode=bytecode)
        state["original_code"] = SerializedCode.to_code_object(state["original_code"])
        with torch._inductor.config.patch(enable_autograd_for_aot=True):
            state["compiled_fn"] = deserialize(code)
        self._parts = CompileArtifacts(**state)
        self._parts.check_compatibility()

    def guards_state(self) -> Any:
        """The guards, as data, without the lines of code that they came from.

        Only texts about them show those, which would be a third of the time that `code` takes.
        """
        from torch._dynamo.package import load_guards_state

        state = load_guards_state(self._parts.guards_state)
        for guard in state.output_graph.guards:
            guard.user_stack = guard.stack = None
        return state

    def code(self, guards_state: Any) -> tuple[Callable[..., Any], Callable[[dict[str, Any]], bool]]:
        """What runs, and what checks the local variables of the compiled function."""
        from torch._dynamo.package import load_guard_manager

        parts = self._parts
        run = parts.runtime_env.forward_callable(parts.backend_id, parts.compiled_fn)
        guards: Any = load_guard_manager(guards_state, parts.original_code, run.__globals__)
        return run, guards.check


def hooks_registered() -> int:
    """A number that is another one after any hook was registered anywhere. Missing: hooks on compiled hosts
    without seeds are ignored, as torch ignores them on compiled modules.
    """
    return RemovableHandle.next_id


def graph_breaks() -> int:
    """Those of this process since dynamo's counters were reset. Missing: `compile_report` raises."""
    from torch._dynamo import utils

    return sum(utils.counters["graph_break"].values())


def compilations() -> Sequence[Any]:
    """The latest compilations that dynamo remembers. Missing: `compile_report` raises."""
    from torch._dynamo import utils

    return utils.get_compilation_metrics()


def graphs_of(code: CodeType) -> int:
    """How many graphs dynamo keeps for a code object. Missing: `compile_report` raises."""
    from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list

    return len(_debug_get_cache_entry_list(code))


def has_graph_for(code: CodeType, local: dict[str, Any]) -> bool:
    """Whether dynamo keeps a graph for a call of a code object with these local variables.

    Missing: code for other sizes is not compared with eager mode.
    """
    from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list

    return any(entry.guard_manager.check(local) for entry in _debug_get_cache_entry_list(code))


def counting_backend(inner: str) -> Any:
    """A backend that counts graphs in ``frame_count``. Missing: `fxgraft.testing` has none."""
    from torch._dynamo.testing import CompileCounterWithBackend

    return CompileCounterWithBackend(inner)


def cpu_attention() -> tuple[Any, Any]:
    """Attention as it runs on a CPU, forward and backward. Missing: FLOPs cannot be counted."""
    aten = torch.ops.aten
    return (
        aten._scaled_dot_product_flash_attention_for_cpu,
        aten._scaled_dot_product_flash_attention_for_cpu_backward,
    )


def dynamo_errors() -> type[Exception]:
    """What dynamo raises where it cannot compile. Missing: what does not compile raises in a call."""
    import torch._dynamo.exc

    return torch._dynamo.exc.TorchDynamoException


def recompile_limit_errors() -> tuple[type[Exception], ...]:
    """What dynamo raises where a function has as many graphs as it may. Missing: it raises in a call."""
    import torch._dynamo.exc

    return (torch._dynamo.exc.FailOnRecompileLimitHit,)


def compile_errors() -> tuple[type[Exception], ...]:
    """What dynamo raises where it compiles nothing, for whichever reason. Missing: as for each of them."""
    return (dynamo_errors(), *recompile_limit_errors())


def is_refused_compilation(error: BaseException) -> bool:
    """Whether dynamo raises ``error`` as nothing is to be compiled (``set_stance("fail_on_recompile")``).

    Missing: code that would be compiled in a comparison with eager mode is distrusted.
    """
    return type(error) is RuntimeError and str(error).startswith(
        "Detected recompile when torch.compile stance"
    )


def only_run(function: Any) -> Any:
    """``function`` by the graphs that dynamo has for it, and eager where none of them fits.

    Missing: calls beyond the limit of graphs raise.
    """
    import torch._dynamo

    return torch._dynamo.run(function)


def nothing_is_static() -> AbstractContextManager[Any]:
    """Inside, no size or number is constant that is not marked. Missing: each number has code of its own."""
    import torch._dynamo.config

    changed: AbstractContextManager[Any] = torch._dynamo.config.patch(assume_static_by_default=False)
    return changed


# Fake tensors and sizes


def fake_tensor_mode(environment: Any) -> Any:
    """A mode whose tensors have sizes of ``environment``, and no data. Missing: sizes are the example's."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(shape_env=environment, allow_non_fake_inputs=True)


def data_dependent_errors() -> tuple[type[Exception], ...]:
    """What is raised where a size depends on data. Missing: as above."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    return DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode


def sizes_may_be_one() -> AbstractContextManager[None]:
    """Make torch not assume that sizes differ from 1, unless it has to. Missing: as above."""
    config: Any = importlib.import_module("torch.fx.experimental._config")
    return config.patch(backed_size_oblivious=True)  # type: ignore[no-any-return]


def python_of(expression: Any) -> str:
    """A size as Python. Missing: as above."""
    from torch.utils._sympy.printers import PythonPrinter

    return str(PythonPrinter().doprint(expression))


# Modules


COMPILED_CALL = "_compiled_call_impl"
"""Where nn.Module looks for a compiled form of itself (``nn.Module.compile``). Missing: blocks run eager."""

UNSAVED_BUFFERS = "_non_persistent_buffers_set"
"""Where it has the names of buffers that are in no ``state_dict``."""

FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")
"""Where it has the hooks of its calls. Missing: hooks of users are not seen, as if there were none."""

OF_HOOKS = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")
"""Where it has what else is known of these. Missing: as above."""

IS_FULL_BACKWARD_HOOK = "_is_full_backward_hook"
"""Where it has of which kind the hooks of its backward pass are."""

STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
"""Where it has those of its ``state_dict``. Missing: a host raises when it is made."""


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether hooks run around its forward."""
    return any(module.__dict__.get(name) for name in FORWARD_HOOKS)


def has_backward_hooks(module: nn.Module) -> bool:
    """Whether hooks run in its backward pass."""
    return any(module.__dict__.get(name) for name in BACKWARD_HOOKS)


def gradient_hooks(parameter: nn.Parameter) -> list[Any]:
    """The hooks that run with its gradient, or after it. Missing: hooks of users are not seen."""
    found = (parameter._backward_hooks, parameter._post_accumulate_grad_hooks)
    return [hook for hooks in found for hook in (hooks or {}).values()]


def has_result_hooks(module: nn.Module) -> bool:
    """Whether hooks run after its forward, or in its backward pass."""
    return bool(module._forward_hooks) or has_backward_hooks(module)


def pre_hooks(module: nn.Module) -> Mapping[int, Any]:
    """The hooks that run before its forward, by their numbers. Missing: as above."""
    return module._forward_pre_hooks


def forget_pre_hook(module: nn.Module, number: int) -> None:
    """Take one of them away, without the handle of its registration. Missing: as above."""
    del module._forward_pre_hooks[number]
    module._forward_pre_hooks_with_kwargs.pop(number, None)


def unsaved_buffers(module: nn.Module) -> set[str]:
    """The names of its buffers that are in no ``state_dict``; the very set. Missing: checkpoints raise."""
    return module._non_persistent_buffers_set


def is_extra_state(name: str) -> bool:
    """Whether a key of a ``state_dict`` is of ``get_extra_state``. Missing: checkpoints of such raise."""
    return name.endswith(nn.modules.module._EXTRA_STATE_KEY_SUFFIX)


def loading_hooks(module: nn.Module) -> list[Any]:
    """The hooks that run when a state is loaded into it. Missing: as above."""
    return [*module._load_state_dict_pre_hooks.values(), *module._load_state_dict_post_hooks.values()]


def fsdp_groups(module: Any) -> list[Any]:
    """The groups of parameters of a module of ``fully_shard``. Missing: hosts that are sharded raise."""
    return list(module._get_fsdp_state()._fsdp_param_groups)


def is_hook_with_module(value: Any) -> bool:
    """Whether it is a hook of ``load_state_dict`` that holds its module. Missing: a host's gets the model."""
    return f"{type(value).__module__}.{type(value).__name__}" == "torch.nn.modules.module._WrappedHook"


# Autograd and functorch


def unpatched(function: Any) -> Any:
    """The function that ``torch.fx`` has replaced while it traces: of ``math``, or given to ``fx.wrap``.

    Each trace that is under way replaces it once more. Missing: traces raise.
    """
    while isinstance(function, FunctionType) and function.__code__ is _PATCHED:
        function = function.__wrapped__  # type: ignore[attr-defined]
    return function


def is_in_forward_mode() -> bool:
    """Whether forward-mode differentiation is under way. Missing: calls of a host raise while seeds blend."""
    return bool(forward_ad._current_level >= 0)


def has_saved_tensor_hooks() -> bool:
    """Whether something looks after what backward passes need. Missing: new code is not compared."""
    return bool(torch._C._autograd._top_saved_tensors_default_hooks(True) is not None)


def enter_autocast(device_type: str, dtype: torch.dtype | None, enabled: bool, cache: bool | None) -> Any:
    """`torch.autocast(...).__enter__()`, that compilers follow. Missing: what switches it has no graph."""
    entered = torch.amp.autocast_mode._enter_autocast(device_type, dtype, enabled, cache)  # type: ignore[no-untyped-call]
    if not torch.compiler.is_compiling():
        _open().append(entered)
    return entered


def exit_autocast(entered: Any) -> None:
    """Leave what `enter_autocast` returned. Missing: as above."""
    if not torch.compiler.is_compiling():
        _open().pop()
    torch.amp.autocast_mode._exit_autocast(entered)  # type: ignore[no-untyped-call]


_of_thread = threading.local()


def _open() -> list[Any]:
    """What this thread has entered by `enter_autocast` and not left."""
    found: list[Any] = _of_thread.__dict__.setdefault("open", [])
    return found


def open_autocasts() -> int:
    """How many this thread has entered and not left."""
    return len(_open())


def leave_autocasts(wanted: int) -> None:
    """Leave all but so many: where a graph has raised inside of them."""
    while len(_open()) > wanted:
        exit_autocast(_open()[-1])


constant_when_compiled(open_autocasts)


set_grad_enabled: Callable[[bool], None] = torch._C._set_grad_enabled
"""What a graph calls to switch gradients, as torch.fx writes it too. Missing: ``import fxgraft`` fails."""


def are_finite(tensors: list[Tensor], found: Tensor, one: Tensor) -> bool:
    """Whether no number in ``tensors`` is a NaN or infinite, in one operation (of GradScaler).

    It multiplies by ``one``, which leaves all bits as they are. Missing: backward passes with seeds raise.

    Args:
        tensors: on one device; `RuntimeError` for complex and sparse ones, and for an expanded one.
        found: float32, 0-d, on that device, for what is found.
        one: likewise, 1.
    """
    with torch.no_grad():
        torch._amp_foreach_non_finite_check_and_unscale_(tensors, found.zero_(), one)
    return not found.item()


def norms(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The 2-norm of each, computed in ``dtype``, in one operation. Missing: the manager's step raises."""
    return list(torch._foreach_norm(tensors, 2, dtype))
