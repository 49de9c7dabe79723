"""Numbers in the pages are those of the committed results."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.explore import presets
from tests.test_docs import ROOT, table

RESULTS = ROOT / "benchmarks" / "results"


def read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def percent(value: float) -> int:
    return round(100 * value)


def growth() -> dict[str, str]:
    """What README says about growth, formed from the results."""
    gpt, cnn = (read("worth.json")["workloads"][name] for name in ("gpt", "cnn"))
    share, error = cnn["share_of_flops"], cnn["share_of_flops_standard_error"]
    best, sweep = gpt["below_envelope_at"]["1.0"], gpt["unknown_size"]["over_the_sweep"]
    return {
        "cheaper than the large network, GPT": f"at most {math.ceil(100 * gpt['share_of_flops'])} %",
        "cheaper than the large network, CNN": f"{percent(share)} ± {percent(error)} %",
        "against the best size, GPT": f"{-best['mean']:.3f} ± {best['standard_error']:.3f}",
        "over the sweep, GPT": f"{percent(sweep)} % of the FLOPs of the sweep",
    }


@pytest.mark.parametrize("page", ["README.md", "docs/growth.md"])
@pytest.mark.parametrize("what", growth())
def test_what_growing_is_worth(what: str, page: str) -> None:
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    assert growth()[what] in text, f"{page} says something else about: {what}"


def peft(what: str, mode: str) -> float:
    """The ratio of fxgraft to PEFT: a median."""
    (row,) = (
        row for row in read("budgets.json")["peft"]["rows"] if (row["what"], row["mode"]) == (what, mode)
    )
    return float(row["measured"]["median"])


WHOLE, BY_REGION = "inductor", "inductor, by region"
LIVE = "12 germinations in the background: until live"
LONGEST = "12 germinations in the background: the longest step"
ALPHA = "another alpha, and the first step"


@pytest.mark.parametrize(
    ("row", "what", "modes", "form"),
    [
        ("the longest training step while they are inserted", LONGEST, (BY_REGION, WHOLE), ".3f"),
        ("until they are live, compiled by region", LIVE, (BY_REGION,), ".2f"),
        ("until they are live, compiled as a whole", LIVE, (WHOLE,), ".1f"),
        ("each later one", ALPHA, (BY_REGION, WHOLE), ".1f"),
        ("a training step, compiled as a whole", "step", (WHOLE,), ".2f"),
        ("a training step, by region", "step", (BY_REGION,), ".2f"),
    ],
)
def test_the_comparison_with_peft(row: str, what: str, modes: tuple[str, ...], form: str) -> None:
    (ratio,) = (cells[-1] for cells in table("comparison.md", "Against PEFT") if cells[0] == row)
    assert ratio.strip("*") == " to ".join(format(peft(what, mode), form) for mode in modes)


def test_results_are_where_pages_say() -> None:
    """A file of results that a page names is there."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for word in page.read_text(encoding="utf-8").replace("`", " ").split():
            path = word.strip(".,;:()\"'")
            if path.startswith(("benchmarks/results/", "benchmarks/baselines/")):
                assert Path(ROOT / path).exists(), f"{page.relative_to(ROOT)} names {path}"


def test_the_table_of_presets_is_that_of_the_committed_results() -> None:
    rows = json.loads((RESULTS / "presets.json").read_text(encoding="utf-8"))["rows"]
    page = presets.PAGE.read_text(encoding="utf-8")
    assert [row["family"] for row in rows] == list(presets.FAMILIES)
    assert page == presets.into_page(page, rows)
