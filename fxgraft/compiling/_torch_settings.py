"""The settings of a process that compiled code depends on: torch's, and where modules are found."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from fxgraft import _torch
from fxgraft.compiling._child import search_path

T = TypeVar("T")

_FLAGS = (
    ("cudnn", "enabled"),
    ("cudnn", "benchmark"),
    ("cudnn", "deterministic"),
    ("mkldnn", "enabled"),
    ("opt_einsum", "enabled"),
    ("opt_einsum", "strategy"),
    ("cuda.matmul", "allow_fp16_accumulation"),
    ("cuda.matmul", "allow_fp16_reduced_precision_reduction"),
    ("cuda.matmul", "allow_bf16_reduced_precision_reduction"),
)
"""Attributes of modules of ``torch.backends``."""

_PRECISIONS = (
    "", "cuda.matmul", "cudnn", "cudnn.conv", "cudnn.rnn",
    "mkldnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn",
)  # fmt: skip
"""Modules of ``torch.backends`` that have a ``fp32_precision``, each after what it takes that over from."""

_PREFIXES = ("TORCHINDUCTOR_", "TRITON_")
_OURS = "TORCHINDUCTOR_COMPILE_THREADS"
"""Which the compiler process sets for itself."""

_ATTENTION = ("flash_sdp", "mem_efficient_sdp", "math_sdp", "cudnn_sdp")


@dataclass(frozen=True)
class TorchSettings:
    """What was set in the process that asks for code; taken on the thread that trains.

    Attributes:
        threads: of torch's operations.
        dtype: the default one.
        precision: of matrix products in float32; None where it was set by ``fp32_precision``: then torch
            refuses to say.
        tf32: whether cuDNN may use it; None likewise.
        precisions: the ``fp32_precision`` of each backend.
        deterministic: whether deterministic algorithms are asked for, whether only by a warning, and whether
            memory that nothing was written to is filled.
        fastpath: whether torch's attention may take a shorter way in inference.
        flags: of ``torch.backends``.
        configs: what differs from the defaults in the configurations of dynamo, AOTAutograd and Inductor.
        variables: of the environment, that torch and Triton read: where they keep what they compile, say.
        path: where modules are found.
        folder: the current one; None where it is gone.
    """

    threads: int
    dtype: torch.dtype
    precision: str | None
    tf32: bool | None
    precisions: tuple[str, ...]
    deterministic: tuple[bool, bool, bool]
    fastpath: bool
    flags: tuple[tuple[Any, ...], tuple[bool, ...]]
    configs: tuple[Mapping[str, Any], ...]
    variables: Mapping[str, str]
    path: tuple[str, ...]
    folder: str | None

    @classmethod
    def here(cls) -> TorchSettings:
        """As this thread has it now."""
        folder = None
        with suppress(OSError):
            folder = os.getcwd()  # noqa: PTH109
        return cls(
            torch.get_num_threads(),
            torch.get_default_dtype(),
            _unless_refused(torch.get_float32_matmul_precision),
            _unless_refused(lambda: bool(torch.backends.cudnn.allow_tf32)),
            tuple(_backend(where).fp32_precision for where in _PRECISIONS),
            (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
                torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
            ),
            torch.backends.mha.get_fastpath_enabled(),
            _flags(),
            tuple(_torch.overrides(config) for config in _torch.compiler_configs()),
            _variables(),
            tuple(search_path()),
            folder,
        )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """As there, here. The configurations are as before afterwards; the rest stays until the next time."""
        self._set_variables()
        sys.path[:] = self.path
        if self.folder is not None:
            with suppress(OSError):
                os.chdir(self.folder)
        torch.set_num_threads(self.threads)
        torch.set_default_dtype(self.dtype)
        if self.precision is not None:
            torch.set_float32_matmul_precision(self.precision)
        if self.tf32 is not None:
            torch.backends.cudnn.allow_tf32 = self.tf32
        for where, precision in zip(_PRECISIONS, self.precisions, strict=True):
            if _backend(where).fp32_precision != precision:
                _backend(where).fp32_precision = precision
        is_deterministic, only_warns, fills = self.deterministic
        torch.use_deterministic_algorithms(is_deterministic, warn_only=only_warns)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
        torch.backends.mha.set_fastpath_enabled(self.fastpath)
        flags, attention = self.flags
        for (where, name), value in zip(_FLAGS, flags, strict=True):
            setattr(_backend(where), name, value)
        for name, value in zip(_ATTENTION, attention, strict=True):
            getattr(torch.backends.cuda, f"enable_{name}")(value)
        with ExitStack() as stack:
            for config, values in zip(_torch.compiler_configs(), self.configs, strict=True):
                stack.enter_context(config.patch(dict(values)))
            yield

    def _set_variables(self) -> None:
        before = _variables()
        if before == self.variables:
            return
        for name in before.keys() - self.variables.keys():
            del os.environ[name]
        os.environ.update(self.variables)
        _torch.forget_files()  # of the folder that was in use


def _variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES) and name != _OURS}


def _flags() -> tuple[tuple[Any, ...], tuple[bool, ...]]:
    attention = (getattr(torch.backends.cuda, f"{name}_enabled")() for name in _ATTENTION)
    return tuple(getattr(_backend(where), name) for where, name in _FLAGS), tuple(attention)


def _unless_refused(ask: Callable[[], T]) -> T | None:
    try:
        return ask()
    except RuntimeError:
        return None


def _backend(where: str) -> Any:
    found: Any = torch.backends
    for name in filter(None, where.split(".")):
        found = getattr(found, name)
    return found
