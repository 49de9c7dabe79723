"""fxgraft grows a PyTorch model while it trains."""

from fxgraft import averaging, blueprints, commands, errors
from fxgraft.capture.region import Region
from fxgraft.compilations import CompileReport, compile_report
from fxgraft.folding import fold
from fxgraft.host import Host
from fxgraft.manager import SeedManager
from fxgraft.seed import Seed
from fxgraft.stage import Stage
from fxgraft.tracing import trace
from fxgraft.unwrapping import unwrap
from fxgraft_passes import Objective, Slot

__version__ = "0.1.0"

__all__ = [
    "CompileReport",
    "Host",
    "Objective",
    "Region",
    "Seed",
    "SeedManager",
    "Slot",
    "Stage",
    "averaging",
    "blueprints",
    "commands",
    "errors",
    "fold",
    "compile_report",
    "trace",
    "unwrap",
]
