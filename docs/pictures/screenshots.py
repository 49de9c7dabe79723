"""Takes the pictures for the documentation: the page of a run, the screen of ``fxgraft watch``, a graph.

``python docs/pictures/screenshots.py runs/demo``, after ``make demo``. Needs chromium with its chromedriver,
graphviz, and transformers.
Run it from the root of the checkout.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from transformers import GPT2Config, GPT2LMHeadModel

import fxgraft
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
    _graph()


def _graph() -> None:
    """A block of GPT-2 with a seed in training."""
    sizes = {
        "n_embd": 32,
        "n_layer": 4,
        "n_head": 2,
        "vocab_size": 64,
        "n_positions": 16,
        "bos_token_id": None,
    }
    model = GPT2LMHeadModel(GPT2Config(**sizes, eos_token_id=None, attn_pdrop=0.0, resid_pdrop=0.0))
    host = fxgraft.trace(model, (), {"input_ids": torch.zeros(2, 16, dtype=torch.long), "use_cache": False})
    fxgraft.SeedManager(host).germinate("transformer.h.3.mlp.act", "mlp", name="a")
    with tempfile.TemporaryDirectory() as folder, chromium(width=700, height=1550) as browser:
        browser.get(host.show().save(Path(folder) / "host.html").as_uri())
        browser.execute_script("""
            const named = [...document.querySelectorAll("summary code")];
            named.find(code => code.textContent === "transformer.h.3").scrollIntoView();
        """)
        browser.save_screenshot(str(IMAGES / "show.png"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
