"""Controllers decide what to grow, and speak to a manager in commands only (code: `fxgraft.training`).

    link = Link(manager, MyController(), evaluate)
    ...
    manager.step()
    link.step(step, loss.item())

A `Recorder` writes down what was said, as JSON lines; a `Replay` of that log makes the run again. No
controller is needed to grow automatically: `SeedManager.autogrow` does that.
"""

from fxgraft.training.controller import Controller, Facts, SeedFacts
from fxgraft.training.controller_link import Link
from fxgraft.training.controller_log import Entry, Recorder, read_log
from fxgraft.training.replay import Replay

__all__ = ["Controller", "Entry", "Facts", "Link", "Recorder", "Replay", "SeedFacts", "read_log"]
