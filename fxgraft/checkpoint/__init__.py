"""Save a growing run and go on with it, bit for bit. Files hold data only: no code, no pickle."""

from fxgraft.checkpoint.ranks import save_streams
from fxgraft.checkpoint.run import RunState, restore, save

__all__ = ["RunState", "restore", "save", "save_streams"]
