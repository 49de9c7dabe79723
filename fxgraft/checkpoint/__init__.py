"""Save a growing run and continue it, bit for bit. Files hold data only: no code, no pickle.

============  ================================================================================
`_run`        the parts of a run: host, seeds, optimizers, schedulers, random streams
`model`       a grown model for inference: no optimizer, no manager
`file`        one file: tensors in safetensors, a JSON manifest in its header; atomic, checked
`_sparse`     sparse tensors as dense ones, and back
`_checks`     whether a checkpoint fits what it is loaded into
`_code`       what a model computes, as text: is it the one that was saved?
`packing`     nested Python data as JSON beside named tensors, and back
`_weights`    the tensors of host and seeds, with the versions of their modules
`_buffers`    the buffers that no ``state_dict`` has
`_seeds`      the record of a seed, and a seed from a record
`_structure`  how seeds are wired, as a tensor of bytes in a ``state_dict``
`optimizers`  state of optimizers, and which parameter is where
`randomness`  the global random streams, and the files with those of other ranks
============  ================================================================================

Group: growth. May import: helpers, graphs, the host, telemetry, commands, gates.
"""

from fxgraft.checkpoint._run import RunState, check, restore, save
from fxgraft.checkpoint._structure import describe, elsewhere, restore_seeds
from fxgraft.checkpoint.randomness import save_streams

__all__ = ["RunState", "check", "describe", "elsewhere", "restore", "restore_seeds", "save", "save_streams"]
