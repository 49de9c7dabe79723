"""Pictures show every slot once, seeds in the colours of their stages, and a user's text as text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft import SeedManager, Stage
from fxgraft.report._host_graph import Drawing, in_order
from fxgraft.seeds.stage import STAGE_COLOURS
from tests.browser import chromium
from tests.networks import ResidualMLP


class Opaque(nn.Module):
    """Its code has no graph: what is inside of it is drawn in frames of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.block = ResidualMLP()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x) if float(x.detach().sum()) < 1e9 else x


@pytest.fixture
def grown() -> fxgraft.Host:
    x = torch.randn(3, 4)
    host = fxgraft.trace(nn.Sequential(ResidualMLP(), Opaque(), nn.Linear(4, 2)), (x,))
    manager = SeedManager(host)
    for name, slot in {"learns": "0.relu", "blends": "0.wide", "holds": "0", "stays": "2"}.items():
        manager.germinate(slot, "low_rank", name=name, rank=1)
    manager.blend("holds", steps=1)
    manager.blend("stays", steps=1)
    manager.step()
    manager.fossilize("stays")
    manager.blend("blends", steps=5)
    manager.step()
    return host


def test_every_seed_has_the_colour_of_its_stage(grown: fxgraft.Host) -> None:
    dot = Drawing(grown, deep=True).of(*in_order(grown)).to_string()
    stages = {
        "learns": Stage.TRAINING, "blends": Stage.BLENDING, "holds": Stage.HOLDING, "stays": Stage.FOSSILIZED,
    }  # fmt: skip
    for name, stage in stages.items():
        (line,) = [line for line in re.findall(r"n\d+ \[[^\]]*\]", dot) if f'"{name}\\n' in line]
        assert STAGE_COLOURS[stage] in line
        assert stage.name.lower() in line


def test_every_operation_is_drawn_once_wherever_it_is(grown: fxgraft.Host) -> None:
    dot = Drawing(grown, deep=True).of(*in_order(grown)).to_string()
    assert dot.count('"wide\\nLinear"') == 2  # one in each block, the one inside the opaque module too
    assert dot.count('"relu"') == 2
    assert '"3 x 8"' in dot.replace('" ', '"')  # where the shape changes


class Twice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(torch.relu(x) - 1)


def test_a_box_has_the_name_by_which_a_seed_germinates_there() -> None:
    host = fxgraft.trace(nn.Sequential(nn.Linear(4, 8), Twice()), (torch.randn(2, 4),))
    assert {"1.relu", "1.sub", "1.relu_1"} <= host.slots.keys()
    dot = Drawing(host, deep=True).of(*in_order(host)).to_string()
    assert [dot.count(text) for text in ('"relu"', '"sub"', '"relu_1\\nrelu"')] == [1, 1, 1]


@pytest.mark.graphviz
def test_the_page_opens_module_by_module(grown: fxgraft.Host, tmp_path: Path) -> None:
    page = grown.show().save(tmp_path / "host.html").read_text(encoding="utf-8")
    assert page.count("<details") == len(grown.regions)
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org/", "")  # offline
    assert "blends" in page
    assert "<iframe" in grown.show()._repr_html_()


@pytest.mark.graphviz
def test_text_is_text(tmp_path: Path) -> None:
    evil = type("<script>alert(1)</script>", (nn.Linear,), {})
    host = fxgraft.trace(nn.Sequential(nn.ReLU(), evil(4, 4)), (torch.randn(2, 4),))
    assert "<script>alert" not in host.show().html()


@pytest.mark.graphviz
@pytest.mark.browser
def test_the_page_opens_module_by_module_in_a_browser(grown: fxgraft.Host, tmp_path: Path) -> None:
    target = grown.show().save(tmp_path / "host.html")
    with chromium() as browser:
        browser.get(target.as_uri())
        assert [entry["message"] for entry in browser.get_log("browser")] == []
        summaries = browser.find_elements("css selector", "summary")
        names = [summary.find_element("css selector", "code").text for summary in summaries]
        assert names[0] == "model"
        figures = browser.find_elements("css selector", "figure svg")
        assert len(figures) == len(summaries), "each module has its graph"
        assert figures[0].is_displayed()
        shown = browser.find_element("css selector", "figure").text
        assert "stays" in shown
        summaries[0].click()
        assert not figures[0].is_displayed()
        summaries[0].click()
        assert figures[0].is_displayed()
        loaded = browser.execute_script("return performance.getEntriesByType('resource').length")
        assert loaded == 0, "the page opens offline"
