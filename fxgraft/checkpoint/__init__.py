"""Save a growing run and go on with it, bit for bit. Files hold data only: no code, no pickle."""

from fxgraft.checkpoint.ranks import save_streams
from fxgraft.checkpoint.run import RunState, restore, save
from fxgraft.checkpoint.structure import describe, elsewhere, revive

__all__ = ["RunState", "describe", "elsewhere", "restore", "revive", "save", "save_streams"]
