"""Controllers decide what to grow, and speak to a manager in commands only.

    link = Link(manager, MyController(), evaluate)
    ...
    manager.step()
    link.step(step, loss.item())

A `Recorder` writes down what was said, as JSON lines; a `Replay` of that log makes the run again. No
controller is needed to grow automatically: `SeedManager.autogrow` does that.

===========  ============================================================
`base`       what a controller is told, and what it is asked for
`link`       carries facts to a controller, and its commands to a manager
`recording`  the log of what a controller said
`replay`     a controller that repeats a log
===========  ============================================================
"""

from fxgraft.controllers.base import Controller, Facts, SeedFacts
from fxgraft.controllers.link import Link
from fxgraft.controllers.recording import Entry, Recorder, read_log
from fxgraft.controllers.replay import Replay

__all__ = [
    "Controller",
    "Entry",
    "Facts",
    "Link",
    "Recorder",
    "Replay",
    "SeedFacts",
    "read_log",
]
