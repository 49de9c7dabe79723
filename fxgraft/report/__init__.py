"""What became of a run, read from the JSON lines that it left: a page to show around, a screen to watch.

    events.jsonl -> `read` -> `Run` -> `page` (one HTML file, offline) | `screen` (a terminal, through rich)

The page needs the extra ``report`` (plotly, jinja2), the screen the extra ``cli`` (rich).
"""

from fxgraft.report.reading import Reader, read
from fxgraft.report.run import Lane, Run

__all__ = ["Lane", "Reader", "Run", "read"]
