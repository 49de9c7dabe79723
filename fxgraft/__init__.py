"""fxgraft grows a PyTorch model while it trains."""

from fxgraft import averaging, blueprints, commands, errors
from fxgraft.capture.region import Region
from fxgraft.compilations import CompileReport, compile_report
from fxgraft.fossils.folding import fold
from fxgraft.fossils.unwrapping import unwrap
from fxgraft.host.host import Host
from fxgraft.host.tracing import trace
from fxgraft.manager.manager import SeedManager
from fxgraft.seeds.seed import Seed
from fxgraft.seeds.stage import Stage
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
