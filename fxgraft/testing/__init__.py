"""For authors of passes, blueprints and controllers: what fxgraft itself is tested with.

* `plans`, `graph_modules`, `lifecycle_calls`: hypothesis strategies of random models (as data that shrinks),
  of random ``GraphModule``s, and of random orders of calls.
* `assert_same_bits`, `observed_call`: comparison to the bit of outputs, gradients, buffers, random streams.
* `counting_backend`, `no_recompiles`: how often something was compiled.

Needs hypothesis: ``pip install 'fxgraft[testing]'``.

========  ===============================================================
`hosts`   hypothesis strategies of random hosts and of calls of a manager
`checks`  comparison to the bit, and how often something was compiled
========  ===============================================================

Group: tools. May import: what they show.
"""

from fxgraft.testing.checks import (
    assert_same_bits,
    counting_backend,
    differences,
    frozen,
    loss_of,
    no_recompiles,
    observed_call,
)
from fxgraft.testing.hosts import OPERATIONS, Child, Plan, graph_modules, lifecycle_calls, plans
from fxgraft.util.bits import same_bits

__all__ = [
    "OPERATIONS",
    "Child",
    "Plan",
    "assert_same_bits",
    "counting_backend",
    "differences",
    "frozen",
    "graph_modules",
    "lifecycle_calls",
    "loss_of",
    "no_recompiles",
    "observed_call",
    "plans",
    "same_bits",
]
