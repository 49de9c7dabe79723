"""A small training loop that carries a manager: an example of integration. And the interface of controllers.

A loop of your own needs ``manager.step()`` after ``optimizer.step()``, and nothing else from here.
What this one shows beside it: validation, mixed precision, clipping for each owner apart, learning-rate
schedules, checkpoints and resuming, and a watchdog that rolls back when the loss diverges.

=================  ==================================================================================
`loop`             the trainer and its configuration
`progress`         where a run is, beside its weights
`loop_parts`       parts of it for any loop: the loss on held-out data, clipping for each owner apart
`checkpoints`      a folder with one file for each checkpoint, and a live host back at one
`watchdog`         says when a loss has diverged
`controller`       the interface of controllers: facts in, commands out
`controller_link`  carries facts to a controller, and its commands to a manager
`controller_log`   the log of what a controller said
`replay`           a controller that repeats a log
=================  ==================================================================================

The public names of the last four are in `fxgraft.controllers`.

Group: interface. May import: what they control.
"""

from fxgraft.training.checkpoints import Checkpoints, rewind
from fxgraft.training.loop import Trainer, TrainingConfig
from fxgraft.training.loop_parts import clip_per_owner, evaluate
from fxgraft.training.progress import EpochReport, Progress
from fxgraft.training.watchdog import DivergedError, Watchdog, WatchdogConfig

__all__ = [
    "Checkpoints",
    "DivergedError",
    "EpochReport",
    "Progress",
    "Trainer",
    "TrainingConfig",
    "Watchdog",
    "WatchdogConfig",
    "clip_per_owner",
    "evaluate",
    "rewind",
]
