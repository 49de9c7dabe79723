"""Save a growing run and go on with it, bit for bit. Files hold data only: no code, no pickle."""

from fxgraft.checkpoint.run import RunState, restore, save

__all__ = ["RunState", "restore", "save"]
