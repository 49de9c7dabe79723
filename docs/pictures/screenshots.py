"""Takes the pictures of a run for the documentation: its page, and the screen of ``fxgraft watch``.

``python docs/pictures/screenshots.py runs/demo``, after ``make demo``. Needs chromium with its chromedriver.
Run it from the root of the checkout.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from fxgraft.report import read
from fxgraft.report.page import write
from fxgraft.report.screen import screen

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.browser import chromium

IMAGES = Path(__file__).parent.parent / "images"


def main(run: Path) -> None:
    """Write the pictures."""
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(screen(read(run)))
    # Fonts would come from another server.
    svg = console.export_svg(title="fxgraft watch", font_aspect_ratio=0.61)
    lines = [line for line in svg.splitlines() if "url(" not in line or "clip-path" in line]
    (IMAGES / "watch.svg").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder, chromium(width=1150, height=1420) as browser:
        browser.get(write(run, Path(folder) / "run.html", "Demo").as_uri())
        browser.save_screenshot(str(IMAGES / "report.png"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
