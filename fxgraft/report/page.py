"""The page of a run: one HTML file with everything in it, which opens offline."""

from __future__ import annotations

import os
from pathlib import Path

import jinja2
from markupsafe import Markup
from plotly.io import to_html
from plotly.offline import get_plotlyjs

from fxgraft.report._charts import MOST_LANES, chart, with_lane
from fxgraft.report._lanes import describe
from fxgraft.report._tree import structure
from fxgraft.report.exploration_columns import COLUMNS, bar_lengths, remark
from fxgraft.report.reading import LOG, ReadError, find, read
from fxgraft.report.run import Run
from fxgraft.seeds.stage import DARK, LIGHT, STAGE_COLOURS

MOST_ROWS = 2000
"""How many rows of a table are written: the latest."""


def write(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    title: str | None = None,
) -> Path:
    """Read the log of a run and write its page.

    Args:
        path: the log, or a folder with an ``events.jsonl``.
        output: the page; by default beside the log, with the suffix ``.html``.
        title: of the page; by default the name of the folder, or that of a log with another name.

    Returns:
        The path of the page.

    Raises:
        ReadError: there is no log, or ``output`` is the log or a folder.
    """
    run, log = read(path), find(path)
    target = Path(output) if output is not None else log.with_suffix(".html")
    if target.exists() and target.samefile(log):
        raise ReadError(f"{target}: expected a place for the page that is not the log's own; name another")
    if target.is_dir():
        raise ReadError(f"{target}: expected a name for the page; this is a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    title = title or (log.resolve().parent.name if log.name == LOG else log.stem)
    target.write_text(page(run, title), encoding="utf-8", errors="replace")
    return target


def page(run: Run, title: str = "") -> str:
    """The page as HTML. Everything from the log is escaped; the page loads nothing from elsewhere.

    Args:
        run: from `fxgraft.report.read`.
        title: default: the name of the host's class.
    """
    # Autoescape is on for everything: what a log holds is never markup.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fxgraft.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = number
    drawn = to_html(chart(run), include_plotlyjs=False, full_html=False, div_id="chart", config=CONFIG)
    return environment.get_template("page.html").render(
        title=title or run.host or "run",
        run=run,
        summary=run.summary(),
        root=structure(run),
        stalls=run.stalls(),
        chart=Markup(drawn),  # plotly escapes what goes into its script
        plotly=Markup(get_plotlyjs()),
        colours={stage.name: colour for stage, colour in STAGE_COLOURS.items()},
        light=LIGHT,
        dark=DARK,
        describe=describe,
        most=MOST_ROWS,
        most_lanes=MOST_LANES,
        drawn=len(with_lane(run)),
        columns=COLUMNS,
        bar_lengths=bar_lengths,
        remark=remark,
    )


CONFIG = {"responsive": True, "displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d"]}


def number(value: float | None, form: str = ".4g") -> str:
    """A number as text; a dash for None.

    Args:
        value: the number, or None.
        form: how to format it, as of `format`. Default: four digits.
    """
    return "-" if value is None else format(value, form)
