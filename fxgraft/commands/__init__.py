"""Commands: what a controller says to a manager, and what it gets back.

    {"type": "SEED", "slot": "layer1.relu", "blueprint": "mlp", "config": {"hidden": 32}}
    {"type": "BLEND", "seed": "mlp_at_layer1_relu", "to": 1.0, "steps": 200, "schedule": "cosine"}
    {"type": "CULL", "seed": "mlp_at_layer1_relu"}        likewise FOSSILIZE, PAUSE, RESUME, FUSE
    {"type": "WIDEN", "group": "blocks.0.up", "by": 64}
    {"type": "DEEPEN", "stack": "transformer.h", "count": 2, "at": "end"}

As Python objects they are small frozen dataclasses, ``commands.SEED(slot=..., blueprint=...)``. Any
command may carry an ``id``; a manager carries out each id once and repeats its reply. `schema` is the
JSON schema of a command. Blueprints are named, never code: nothing in a command is ever executed.

==========  ============================================================================
`messages`  the commands and replies, as dataclasses
`parsing`   from text, dictionaries or objects to commands; what comes in is not trusted
`inbox`     commands of other threads, waiting for the end of a training step
==========  ============================================================================

Group: interface. May import: what they control.
"""

from fxgraft.commands.messages import (
    BLEND,
    CULL,
    DEEPEN,
    FOSSILIZE,
    FUSE,
    PAUSE,
    RESUME,
    SEED,
    WIDEN,
    Command,
    Reply,
)
from fxgraft.commands.parsing import MAX_BYTES, parse, read, schema, to_dict

__all__ = [
    "BLEND",
    "CULL",
    "DEEPEN",
    "FOSSILIZE",
    "FUSE",
    "MAX_BYTES",
    "PAUSE",
    "RESUME",
    "SEED",
    "WIDEN",
    "Command",
    "Reply",
    "parse",
    "read",
    "schema",
    "to_dict",
]
