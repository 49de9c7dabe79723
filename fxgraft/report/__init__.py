"""What became of a run, read from the JSON lines that it left: a page to show around, a screen to watch.

    events.jsonl -> `read` -> `Run` -> `page` (one HTML file, offline) | `screen` (a terminal, through rich)

The page needs the extra ``report`` (plotly, jinja2), the screen the extra ``cli`` (rich).

=====================  ========================================================================
`reading`              from lines of JSON to a run
`run`                  a run: losses, times, seeds, events
`page`                 the page: one HTML file
`_charts`              its chart, through plotly
`_lanes`               one row of the chart: a seed
`_traces`              lines, marks and axes of the chart
`_points`              points over steps: thinned, smoothed
`exploration_columns`  what is shown of an exploration, wherever it is shown
`exploration_table`    an exploration as a table, through rich
`marks`                slots in the colours of what an exploration found
`_tree`                the final structure, by modules
`screen`               the screen of ``fxgraft watch``, through rich, of a log that still grows
`host_picture`         the picture of a host, ``host.show()``
`_host_graph`          what that picture draws: boxes and frames
=====================  ========================================================================

Group: tools. May import: what they show.
"""

from typing import TYPE_CHECKING

from fxgraft.report.reading import Reader, read
from fxgraft.report.run import Lane, Run
from fxgraft.util.lazy_modules import lazy_modules

if TYPE_CHECKING:
    from fxgraft.report import page, screen  # noqa: F401

__all__ = ["Lane", "Reader", "Run", "read"]

__getattr__, __dir__ = lazy_modules(__name__, "page", "screen")
