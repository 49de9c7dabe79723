"""Takes the pictures of an exploration: its table, and the host in the colours of what its slots would give.

``python docs/pictures/exploration.py`` runs the exploration, on scikit-learn's digits: a minute. It writes
``docs/images/explore_table.png``, ``explore_host.png`` and ``explore_report.png``. Needs chromium with its
chromedriver, and graphviz. Run it from the root of the checkout.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fxgraft
from fxgraft.explore import Exploration
from fxgraft.report.page import write
from fxgraft.telemetry import JsonLines

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.browser import chromium

IMAGES = Path(__file__).parent.parent / "images"
WARM_UP, EXPLORED = 300, 100


class Small(nn.Module):
    """The model of the tutorial: it reads the digits through two channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.head(x.flatten(1))


def explored(log: Path) -> Exploration:
    """A run with an exploration of everything."""
    torch.manual_seed(2)
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    order = torch.randperm(len(x))
    x, y = x[order], y[order]
    host = fxgraft.trace(Small(), (x[:8],))
    optimizer = torch.optim.AdamW(host.parameters(), 3e-3)
    manager = fxgraft.SeedManager(host, optimizer, sinks=[JsonLines(log)], metrics_every=10)

    def evaluate() -> list[Tensor]:
        host.eval()
        parts = zip(x[1400:].split(100), y[1400:].split(100), strict=True)
        return [cross_entropy(host(images), digits) for images, digits in parts]

    def train(steps: int) -> None:
        for _ in range(steps):
            host.train()
            now = torch.randint(0, 1400, (64,))
            optimizer.zero_grad()
            loss = cross_entropy(host(x[now]), y[now])
            loss.backward()
            optimizer.step()
            manager.step(loss)

    train(WARM_UP)
    exploration = manager.explore("auto", evaluate=evaluate, steps=EXPLORED)
    train(EXPLORED + 1)
    return exploration


def main() -> None:
    """Write the pictures."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "events.jsonl"
        exploration = explored(log)
        print(exploration)
        exploration.show(by="expected").save(IMAGES / "explore_host.png")
        console = Console(record=True, width=112, file=io.StringIO())
        console.print(exploration)
        table = Path(folder) / "table.svg"
        table.write_text(console.export_svg(title="print(exploration) with rich"), encoding="utf-8")
        with chromium(width=1120, height=760) as browser:
            browser.get(table.as_uri())
            browser.save_screenshot(str(IMAGES / "explore_table.png"))
        with chromium(width=1150, height=900) as browser:
            browser.get(write(log, Path(folder) / "run.html", "Digits").as_uri())
            browser.execute_script("""
                const headings = [...document.querySelectorAll("h2")];
                headings.find(one => one.textContent.startsWith("Exploration")).scrollIntoView();
            """)
            browser.save_screenshot(str(IMAGES / "explore_report.png"))


if __name__ == "__main__":
    main()
