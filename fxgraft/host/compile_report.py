"""What was compiled for a host, how often, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from fxgraft import _torch
from fxgraft.errors import FxGraftError
from fxgraft.host.host import Host

if TYPE_CHECKING:
    from fxgraft.compiling.variants import Variant


@dataclass(frozen=True)
class VariantReport:
    """One structure in one phase.

    Attributes:
        label: the unit, the seeds and their slots, and the phase.
        graphs: how many graphs dynamo compiled for it in this process: one for each kind of call
            (train and eval mode, gradients, sizes).
        artifacts: how many kinds of call have code of the compiler process.
        uncompiled_calls: how many calls ran uncompiled, for want of code.
        distrusted: why all calls run uncompiled from now on: the code differs from eager mode, or what was
            changed in it does not compile; None if it is trusted, or was not run yet.
        at_limit: whether calls of further kinds run uncompiled, as torch compiles a function for so many only
            (``torch._dynamo.config.recompile_limit``).
        seconds: what compiling those graphs took, as far as dynamo remembers.
        recompiles: why dynamo compiled each graph after the first, as far as it remembers (it keeps
            the last ``torch._dynamo.config.metrics_count`` compilations or so).
    """

    label: str
    graphs: int
    artifacts: int
    uncompiled_calls: int
    seconds: float
    recompiles: tuple[str, ...]
    distrusted: str | None = None
    at_limit: bool = False


@dataclass(frozen=True)
class CompileReport:
    """What was compiled for a host; see `compile_report`.

    Attributes:
        units: the names of the modules that are compiled, each as one unit; ``""`` is the host.
        variants: one entry for each structure and phase that is kept.
        eager: the names of the seeds that run uncompiled by choice, outside of all units.
        graph_breaks: 0 under ``fullgraph=True``, which refuses them; otherwise those of the whole
            process since dynamo's counters were reset.
        unprepared: unit -> why calls of it cannot be generated, where it had such calls: after a change the
            first of them compiles, and its step waits.
    """

    units: tuple[str, ...]
    variants: tuple[VariantReport, ...]
    graph_breaks: int
    eager: tuple[str, ...] = ()
    unprepared: dict[str, str] = field(default_factory=dict)

    @property
    def graphs(self) -> int:
        """The number of graphs compiled in this process."""
        return sum(variant.graphs for variant in self.variants)

    @property
    def artifacts(self) -> int:
        """The number of graphs compiled by the compiler process."""
        return sum(variant.artifacts for variant in self.variants)

    @property
    def uncompiled_calls(self) -> int:
        """The number of calls that ran uncompiled because no code was ready."""
        return sum(variant.uncompiled_calls for variant in self.variants)

    def to_dict(self) -> dict[str, Any]:
        """The report as a dictionary of JSON types."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{len(self.units)} unit(s), {len(self.variants)} variants, {self.graphs} graphs compiled here, "
            f"{self.artifacts} by the compiler process, {self.uncompiled_calls} uncompiled calls, "
            f"{self.graph_breaks} graph breaks"
        ]
        for v in self.variants:
            lines.append(
                f"  {v.label}: {v.graphs} here, {v.artifacts} by the compiler process, "
                f"{v.uncompiled_calls} uncompiled"
            )
            lines += [f"    compiled again: {reason}" for reason in v.recompiles]
            lines += [f"    runs uncompiled: {v.distrusted}"] if v.distrusted else []
            lines += ["    at torch's limit: calls of further kinds run uncompiled"] if v.at_limit else []
        if self.eager:
            lines.append(f"  uncompiled, between the units: {', '.join(self.eager)}")
        for unit, reason in self.unprepared.items():
            name = f"block {unit!r}" if unit else "the host"
            lines.append(f"  {name} has calls that nothing is compiled for before they come: {reason}")
        return "\n".join(lines)


def compile_report(host: nn.Module) -> CompileReport:
    """What was compiled for ``host``: structures, graphs, recompiles with their reasons, graph breaks.

    Args:
        host: a host that `Host.compile` was called on.

    Raises:
        TypeError: ``host`` is not a `Host`.
        FxGraftError: the host is not compiled.
    """
    if not isinstance(host, Host):
        raise TypeError(f"host: expected a fxgraft.Host; got {type(host).__name__}")
    compiled = host.compiled
    if compiled is None:
        raise FxGraftError("the host is not compiled: call host.compile() first")
    breaks = 0 if compiled.options["fullgraph"] else _torch.graph_breaks()
    remembered = _torch.compilations()
    rows = tuple(_row(variant, remembered) for variant in compiled.variants)
    units = tuple(unit.name for unit in compiled.units.all)
    return CompileReport(units, rows, breaks, compiled.units.eager, compiled.unprepared)


def _row(variant: Variant, remembered: Sequence[Any]) -> VariantReport:
    code = variant.function.__code__
    own = [compilation for compilation in remembered if compilation.co_name == code.co_name]
    return VariantReport(
        variant.label,
        variant.graphs,
        len(variant.artifacts),
        variant.misses,
        sum(compilation.entire_frame_compile_time_s or 0.0 for compilation in own),
        tuple(str(compilation.recompile_reason) for compilation in own if compilation.recompile_reason),
        variant.distrusted,
        variant.at_limit,
    )
