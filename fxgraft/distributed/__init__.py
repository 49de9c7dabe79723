"""One host on several ranks: what makes the seeds of all ranks one.

Everything runs on ``torch.distributed``: the user wraps the host in ``DistributedDataParallel``, gives that
to the manager, and keeps the loop.

    rank 0    forward   backward ──────────────┐ averaged   optimizer.step()   manager.step()
                           │ header (async)    │ gradients                       │ as agreed
    rank 1    forward   backward ──────────────┘ of seeds   optimizer.step()   manager.step()

* `_exchange`: a small message of each rank to all, once per backward pass. It carries a digest of the
  structure, so that ranks that differ report it instead of waiting for each other; what each is ready for, so
  that they act in the same step; and the commands of rank 0.
* `_averaging`: the gradients of seeds, which ``DistributedDataParallel`` does not know of.
* `_choice`: which ranks train a host. One of several processes may have given its manager the host alone: it
  refuses where ranks train it.
* `_fsdp`: the ranks of a host that ``fully_shard`` has sharded; `_fsdp_seeds`: the parameters of seeds there;
  `_dcp`: such a run as a folder, written by ``torch.distributed.checkpoint``.
* `peers`: the interface that the manager uses. `SingleProcess` is that of one process and costs nothing,
  `_replicas` that of several.

Group: growth. May import: helpers, graphs, the host, telemetry, commands, gates.
"""

from fxgraft.distributed._choice import peers_of
from fxgraft.distributed.peers import Peers, SingleProcess

__all__ = ["SingleProcess", "Peers", "peers_of"]
