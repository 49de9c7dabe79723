"""A small training loop that carries a manager: an example of integration. And what controllers need.

A loop of your own needs ``manager.step()`` after ``optimizer.step()``, and nothing else from here.
What this one shows beside it: validation, mixed precision, clipping for each owner apart, learning-rate
schedules, checkpoints and resuming, and a watchdog that rolls back when the loss diverges.

=================  ========================================================
`loop`             the trainer and its configuration
`progress`         where a run is, beside its weights
`evaluation`       the loss on held-out data
`clipping`         gradient clipping for each owner apart
`checkpoints`      a folder with one file for each checkpoint
`watchdog`         says when a loss has diverged
`rewind`           a live host and its optimizers, back at a checkpoint
`controller`       what a controller is told, and what it is asked for
`controller_link`  carries facts to a controller, and its commands to a manager
`controller_log`   the log of what a controller said
`replay`           a controller that repeats a log
=================  ========================================================

The public names of the last four are in `fxgraft.controllers`.

Group: interface. May import: what they control.
"""

from fxgraft.training.checkpoints import Checkpoints
from fxgraft.training.clipping import clip_per_owner
from fxgraft.training.evaluation import evaluate
from fxgraft.training.loop import Trainer, TrainingConfig
from fxgraft.training.progress import EpochReport, Progress
from fxgraft.training.rewind import rewind
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
