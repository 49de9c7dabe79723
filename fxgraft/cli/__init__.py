"""The command line, ``fxgraft`` or ``python -m fxgraft``. Needs typer: ``pip install 'fxgraft[cli]'``.

Exit codes: 0 done; 1 it cannot be done, or is not so (a model that cannot be traced, a checkpoint that is
damaged); 2 wrong usage, a target that cannot be loaded included.

============  ======================================================================
`app`         the application, shared arguments, how errors are reported
`_target`     the argument TARGET: a callable that makes a model and an example call
`_models`     explain, slots, plan, graph, demo
`_exploring`  explore
`_measuring`  bench
`_files`      checkpoint inspect, checkpoint verify, report, watch
============  ======================================================================

Group: tools. May import: what they show.
"""

from fxgraft.cli import _exploring, _files, _measuring, _models
from fxgraft.cli.app import app

__all__ = ["_exploring", "_files", "_measuring", "_models", "app"]
