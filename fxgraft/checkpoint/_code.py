"""What a model computes, as text, to see whether a checkpoint fits a model that computes the same.

Models of the same tensors can be other functions. A file has the classes of the modules, with the settings
that torch's own print, and the graphs that were traced. Texts that differ do not prove that the functions do
(another example call, another version of a library), and equal ones prove little of code without a graph.
So a difference is a warning.
"""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.fx as fx
from torch import nn

from fxgraft.checkpoint.file import DAMAGED
from fxgraft.errors import CheckpointError
from fxgraft.host.host import Host
from fxgraft.telemetry.events import logger
from fxgraft_passes.graft import SEEDS

_texts: weakref.WeakKeyDictionary[fx.Graph, str] = weakref.WeakKeyDictionary()
_NOISE = re.compile(r" at 0x[0-9a-f]+| : \[num_users=\d+\]")
_MOVED = re.compile(r"\bfxgraft_passes\.operators\.(assume|by_mode|run)\b")
"""Operators as files name them that were written before these were in `fxgraft.capture.trace_operators`."""
_MOST = 3
"""How many differences are listed."""


@dataclass(frozen=True)
class ModelCode:
    """The texts of a host, without its seeds.

    Attributes:
        modules: qualified name -> class, and settings.
        graphs: the name of a region -> its graph, a line for each node.
    """

    modules: Mapping[str, str]
    graphs: Mapping[str, str]

    @classmethod
    def of(cls, host: Host) -> ModelCode:
        """That of ``host`` as it is."""
        modules = {name: _class_text(m) for name, m in host.named_modules() if name and not _is_seeds(name)}
        graphs = {name: _text(r.base) for name, r in host.regions.items() if not _is_seeds(name)}
        return cls(modules, graphs)

    def to_json(self) -> dict[str, Any]:
        """For a manifest; texts that many modules share are in it once."""
        texts = list(dict.fromkeys([*self.modules.values(), *self.graphs.values()]))
        places = {text: i for i, text in enumerate(texts)}
        named = {"modules": self.modules, "graphs": self.graphs}
        return {"texts": texts} | {k: {n: places[t] for n, t in v.items()} for k, v in named.items()}

    @classmethod
    def read(cls, data: Any) -> ModelCode | None:
        """The inverse of `to_json`; None of a file of before. Raises `CheckpointError` for anything else."""
        if data is None:
            return None
        try:
            texts = [_MOVED.sub(r"fxgraft.capture.trace_operators.\1", str(text)) for text in data["texts"]]
            modules, graphs = ({n: texts[i] for n, i in data[k].items()} for k in ("modules", "graphs"))
            return cls(modules, graphs)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise CheckpointError(f"what it says of the model's code cannot be read. {DAMAGED}") from error

    def differences(self, saved: ModelCode) -> list[str]:
        """What differs from the ``saved`` one, in words."""
        found = []
        for name in dict.fromkeys([*self.modules, *saved.modules]):
            ours, theirs = self.modules.get(name, "nothing"), saved.modules.get(name, "nothing")
            if ours != theirs:
                found.append(f"{name} is {ours}, and was {theirs}")
        for name in dict.fromkeys([*self.graphs, *saved.graphs]):
            graph, other = self.graphs.get(name), saved.graphs.get(name)
            where = f"the forward of {name}" if name else "the model's forward"
            if graph is None or other is None:
                found.append(f"{where} has {'no' if graph is None else 'a'} graph here, other than there")
            elif graph != other:
                found.append(f"{where} has {_first_difference(graph, other)}")
        return found


def warn_of_other_code(path: str | os.PathLike[str], host: Host, saved: ModelCode | None) -> None:
    """Say where the code of ``host`` is not that of the saved run."""
    if saved is None or not (found := ModelCode.of(host).differences(saved)):
        return
    logger.warning(
        "%s: the code of the model is not that of the saved run: %s%s. Load it into a model that computes "
        "the same, traced with a call like that one",
        path,
        "; ".join(found[:_MOST]),
        f"; and {len(found) - _MOST} more" if len(found) > _MOST else "",
    )


def _is_seeds(name: str) -> bool:
    return name.partition(".")[0] == SEEDS


def _class_text(module: nn.Module) -> str:
    kind = type(module)
    # What others print of themselves may change from step to step.
    settings = module.extra_repr() if kind.__module__.startswith("torch.") else "…"
    return f"{kind.__name__}({settings})"


def _text(graph: fx.Graph) -> str:
    if graph not in _texts:
        _texts[graph] = "\n".join(_NOISE.sub("", str(node.format_node())).strip() for node in graph.nodes)
    return _texts[graph]


def _first_difference(graph: str, other: str) -> str:
    ours, theirs = graph.splitlines(), other.splitlines()
    for line, there in zip(ours, theirs, strict=False):
        if line != there:
            return f"`{line}`, where it was `{there}`"
    return f"{len(ours)} operations, where it was {len(theirs)}"
