"""fxgraft grows a PyTorch model while it trains."""

from typing import TYPE_CHECKING

from fxgraft import averaging, blueprints, commands, errors
from fxgraft.capture.region import Region
from fxgraft.checkpoint.model import load_model
from fxgraft.fossils.folding import fold
from fxgraft.fossils.transplanting import Transplanted, transplant
from fxgraft.fossils.unwrapping import unwrap
from fxgraft.host.compile_report import CompileReport, compile_report
from fxgraft.host.host import Host
from fxgraft.host.stacks import Stack
from fxgraft.host.tracing import trace
from fxgraft.manager.manager import SeedManager
from fxgraft.resizing import Widening
from fxgraft.seeds.seed import Seed
from fxgraft.seeds.stage import Stage
from fxgraft.util.lazy_modules import lazy_modules
from fxgraft_passes import Objective, Slot
from fxgraft_passes.channels.groups import ChannelGroup

_LAZY_MODULES = (
    "config",
    "controllers",
    "cost",
    "gates",
    "integrations",
    "report",
    "schedules",
    "telemetry",
    "testing",
    "training",
)
"""Imported when they are first named: ``import fxgraft`` is enough for ``fxgraft.training.Trainer``."""

if TYPE_CHECKING:
    from fxgraft import (  # noqa: F401
        config,
        controllers,
        cost,
        gates,
        integrations,
        report,
        schedules,
        telemetry,
        testing,
        training,
    )

__version__ = "0.1.0"

__all__ = [
    "ChannelGroup",
    "CompileReport",
    "Host",
    "Objective",
    "Region",
    "Seed",
    "SeedManager",
    "Slot",
    "Stack",
    "Stage",
    "Widening",
    "Transplanted",
    "averaging",
    "blueprints",
    "commands",
    "errors",
    "fold",
    "load_model",
    "compile_report",
    "trace",
    "transplant",
    "unwrap",
]

__getattr__, __dir__ = lazy_modules(__name__, *_LAZY_MODULES)
