"""The settings of a process that compiled code depends on: torch's, and where modules are found."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

from fxgraft import _torch

_FLAGS = (
    ("cudnn", "enabled"),
    ("cudnn", "benchmark"),
    ("cudnn", "deterministic"),
    ("cudnn", "allow_tf32"),
    ("cuda.matmul", "allow_fp16_reduced_precision_reduction"),
    ("cuda.matmul", "allow_bf16_reduced_precision_reduction"),
)
"""Attributes of modules of ``torch.backends``."""

_PREFIXES = ("TORCHINDUCTOR_", "TRITON_")
_OURS = "TORCHINDUCTOR_COMPILE_THREADS"
"""Which the compiler process sets for itself."""

_ATTENTION = ("flash_sdp", "mem_efficient_sdp", "math_sdp", "cudnn_sdp")


@dataclass(frozen=True)
class Ambient:
    """What was set in the process that asks for code; taken on the thread that trains.

    Attributes:
        threads: of torch's operations.
        dtype: the default one.
        precision: of matrix products in float32.
        deterministic: whether deterministic algorithms are asked for, and whether only by a warning.
        flags: of ``torch.backends``.
        configs: what differs from the defaults in the configurations of dynamo, AOTAutograd and Inductor.
        variables: of the environment, that torch and Triton read: where they keep what they compile, say.
        path: where modules are found.
        folder: the current one; None where it is gone.
    """

    threads: int
    dtype: torch.dtype
    precision: str
    deterministic: tuple[bool, bool]
    flags: tuple[tuple[Any, ...], tuple[bool, ...]]
    configs: tuple[Mapping[str, Any], ...]
    variables: Mapping[str, str]
    path: tuple[str, ...]
    folder: str | None

    @classmethod
    def here(cls) -> Ambient:
        """As this thread has it now."""
        folder = None
        with suppress(OSError):
            folder = os.getcwd()  # noqa: PTH109
        return cls(
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.get_float32_matmul_precision(),
            (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            _flags(),
            tuple(_torch.overrides(config) for config in _torch.compiler_configs()),
            _variables(),
            tuple(sys.path),
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
        torch.set_float32_matmul_precision(self.precision)
        torch.use_deterministic_algorithms(self.deterministic[0], warn_only=self.deterministic[1])
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


def _backend(where: str) -> Any:
    found: Any = torch.backends
    for name in where.split("."):
        found = getattr(found, name)
    return found
