"""Numbers in the pages are those of the committed results."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks.explore import growing, presets
from benchmarks.worth import summary
from benchmarks.worth.questions import NEAR, with_error
from fxgraft.explore import scoring
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
    thin = read("worth.json")["workloads"]["thin"]
    size, last = thin["unknown_size"], thin["below_envelope_at"]["1.0"]
    above = size["loss_at_full_budget"]["mean"] * NEAR / size["loss_to_reach"] - 1
    control = cnn["added_control"]
    worse = control["below_it_at"]["1.0"]
    best, sweep = gpt["below_envelope_at"]["1.0"], gpt["unknown_size"]["over_the_sweep"]
    copied = read("worth.json")["tried_again"]["deepen-1-2-copy"]
    below, lower = copied["below_best_fixed"], copied["below_lower_rate"]
    return {
        "cheaper than the large network, GPT": f"at most {math.ceil(100 * gpt['share_of_flops'])} %",
        "cheaper than the large network, CNN": f"{percent(share)} ± {percent(error)} %",
        "against the best size, GPT": f"{-best['mean']:.3f} ± {best['standard_error']:.3f}",
        "against the best size, CNN": f"{-worse['mean']:.3f} ± {worse['standard_error']:.3f}",
        "above the best size, CNN": f"{percent(control['above']['1.0'])} % above",
        "against the best size, second CNN": f"{-last['mean']:.3f} ± {last['standard_error']:.3f}",
        "above the best size, second CNN": f"{percent(above)} % above",
        "over the sweep, GPT": f"{percent(sweep)} % of the FLOPs of the sweep",
        "a copied block, below two": f"{below['mean']:.3f} ± {below['standard_error']:.3f} nats",
        "a copied block, below two with a lower rate": f"{lower['mean']:.3f} ± {lower['standard_error']:.3f}",
    }


def signed(found: Any) -> str:
    """A difference, as the table of the page has it."""
    return f"{found['mean']:.4f} ± {found['standard_error']:.4f}"


IN_README = ("cheaper than the large network", "over the sweep")


@pytest.mark.parametrize("page", ["README.md", "docs/growth.md"])
@pytest.mark.parametrize("what", growth())
def test_what_growing_is_worth(what: str, page: str) -> None:
    if page == "README.md" and not what.startswith(IN_README):
        return
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    assert growth()[what] in text, f"{page} says something else about: {what}"


COPIED = {
    "size not known": ("grow-copies", ("below_best_fixed", "below_other_rate", "below_stepped")),
    "size known": ("copies", ("below_best_fixed", "below_other_rate", "below_stepped")),
}


def test_blocks_that_come_as_copies() -> None:
    """The table of the page."""
    found = read("worth.json")["copies"]
    rows = table("growth.md", "Blocks that come as copies")
    assert len(rows) == 6
    for (task, told), (what, (arm, controls)) in itertools.product(found.items(), COPIED.items()):
        (row,) = (cells for cells in rows if cells[:2] == [TASKS[task], what])
        assert row[2] == signed(told[arm]["loss"]), (task, what)
        assert row[3:] == [signed(told[arm][control]) for control in controls], (task, what)


TASKS = {"gpt": "GPT", "cnn": "CNN", "thin": "third task"}


def in_short() -> list[list[str]]:
    """The table of the page, formed from the results: growth against the strongest control of each task."""
    worth = read("worth.json")
    rows = []
    for name, task in (TASKS | {"brown": "GPT, English text", "long": "GPT, long runs"}).items():
        arms = worth["copies"].get(name) or worth["workloads"][name]["arms"]
        cells = [task]
        for arm in ("grow-copies", "copies"):
            found = [arms[arm][key] for key in ("below_best_fixed", "below_other_rate") if key in arms[arm]]
            least = min(found, key=lambda one: one["mean"])
            if arm == "grow-copies":
                best = arms[arm]["loss"]["mean"] + least["mean"]
                size = least.get("best_fixed") or least["arm"]
                cells += [size.split("-")[1], ", ".join(map(str, arms[arm]["blocks"]))]
                cells += [signed(least), f"{100 * (arms[arm]['loss']['mean'] / best - 1):.1f} %"]
            else:
                cells.append(signed(least))
        rows.append(cells)
    return rows


def test_growth_in_short() -> None:
    """The table of the page, and the same in README, where the third task is the second CNN."""
    rows = in_short()
    assert table("growth.md", "In short") == rows
    shown = [[task, size, known, below, above, found] for task, size, found, below, above, known in rows]
    shown[2][0] = "second CNN"
    assert table("../README.md", "What is measured") == shown


def test_another_text_and_longer_runs() -> None:
    """The table of the page."""
    workloads = read("worth.json")["workloads"]
    rows = table("growth.md", "Another text, and longer runs")
    expected = []
    for name, task in (("brown", "English text"), ("long", "long runs")):
        for arm, what in OTHER_ARMS.items():
            if (of := workloads[name]["arms"].get(arm)) is not None:
                below = [signed(of[key]) for key in ("below_best_fixed", "below_stepped") if of.get(key)]
                expected.append([task, what, signed(of["loss"]), *below, *[""] * (2 - len(below))])
    assert rows == expected


def least(arm: Any) -> str:
    """How far an arm is from the strongest control, without its sign."""
    controls = [arm[key] for key in ("below_best_fixed", "below_other_rate") if key in arm]
    found = min(controls, key=lambda one: one["mean"])
    return f"{abs(found['mean']):.3f} ± {found['standard_error']:.3f}"


@pytest.mark.parametrize("page", ["README.md", "docs/growth.md"])
def test_sentences_on_another_text_and_longer_runs(page: str) -> None:
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    workloads = read("worth.json")["workloads"]
    brown, long = workloads["brown"], workloads["long"]
    for told in (brown, long):
        assert page == "README.md" or least(told["arms"]["grow-copies"]) in text
        assert f"{100 * told['unknown_size']['guessing_at_random_misses_best_by']:.1f} %" in text
    assert least(long["arms"]["copies"]) in text
    share, error = long["share_of_flops"], long["share_of_flops_standard_error"]
    assert f"{percent(share)} ± {percent(error)} %" in text
    assert f"at most {math.ceil(100 * brown['share_of_flops'])} %" in text
    if page != "README.md":
        assert all(least(told["arms"]["grow-sooner"]) in text for told in (brown, long))
        for found in (told["sooner_minus_primary"] for told in (brown, long)):
            assert f"{found['mean']:.3f} ± {found['standard_error']:.3f}" in text
    above = [told["unknown_size"]["growth_above_best_by"] for told in (brown, long)]
    assert f"{100 * max(above):.1f} % above" in text


OTHER_ARMS = {
    "grow-copies": "size not known",
    "grow-sooner": "size not known, a quarter of the price",
    "copies": "size known",
    "zeroed": "size known, output layers zeroed",
}

GUESSED = {
    "gpt": "GPT", "brown": "GPT, English text", "cnn": "CNN", "thin": "third task", "long": "GPT, long runs",
}  # fmt: skip


def guessed_rows() -> list[list[str]]:
    """The table of the page on guesses of the size, formed from the results."""
    rows = []
    for name, task in GUESSED.items():
        found = read("worth.json")["guesses"][name]
        for depth, guess in found["guesses"].items():
            fixed, grown = guess["fixed_above_best_by"], guess["grown_above_best_by"]
            difference = guess["grown_minus_fixed"]
            cells = ["" if share is None else f"{100 * share:.1f} %" for share in (fixed, grown)]
            rows.append([task, f"{depth} blocks", *cells, with_error(difference) if difference else ""])
        early = found["early"]
        blocks = ", ".join(map(str, early["blocks"]))
        rows.append([task, f"none: {blocks} blocks", "", f"{100 * early['above_best_by']:.1f} %", ""])
    return rows


def test_what_a_wrong_guess_costs() -> None:
    """The table of the page, and the sentences on all cases."""
    assert table("growth.md", "What a wrong guess costs") == guessed_rows()
    over_all = read("worth.json")["guesses_over_all"]
    text = " ".join((ROOT / "docs" / "growth.md").read_text(encoding="utf-8").split())
    said = f"lower in {over_all['lower']} of {over_all['cases']} cases and higher in {over_all['higher']}"
    assert said in text
    for name in GUESSED:
        early = read("worth.json")["guesses"][name]["early"]["minus_best"]
        error = "" if early["standard_error"] is None else f" ± {early['standard_error']:.3f}"
        assert f"{abs(early['mean']):.3f}{error}" in text, name


def measured_rows() -> list[list[str]]:
    """The table of the page on blocks that are measured several times, formed from the results."""
    what = {"grow-measured": "measured eight times", "grow-early": "measured once"}
    rows = []
    for name, task in GUESSED.items():
        found = read("worth.json")["measured"].get(name)
        for arm, of in (found or {"grown": {}})["grown"].items():
            minus = of["minus_best"]
            difference = with_error(minus)
            blocks, above = ", ".join(map(str, of["blocks"])), f"{100 * of['above_best_by']:.1f} %"
            rows.append([task, what[arm], blocks, found["best_fixed"].split("-")[1], above, difference])
    return rows


def test_blocks_that_are_measured_several_times() -> None:
    assert table("growth.md", "Blocks that are measured several times") == measured_rows()
    over = read("worth.json")["measured_over_all"]
    text = " ".join((ROOT / "docs" / "growth.md").read_text(encoding="utf-8").split())
    assert f"{over['mean']:.3f} ± {over['standard_error']:.3f} nats over both" in text


LIBRARIES = {
    "adapters": {
        "LoRA on 2 blocks, frozen as they are": "lora-2",
        "LoRA on 2 blocks whose rate had fallen to 0 before": "lora-2-decayed",
        "LoRA on 1 block, frozen as it is": "lora-1",
    },
    "widths": {
        "64 units from the start, the rate falls as that of growth": "stepped-8",
        "64 units from the start": "fixed-8",
        "grown by `widen`": "widen-1-8",
        "grown by gromo": "gromo-1-8",
        "grown by gromo, what it computes not charged": "gromo-1-8-free",
        "`autogrow` with its defaults": "autogrow-anything",
    },
}
"""The rows of the table of peers, by the key of the results."""
AGAINST = {"adapters": ("fixed-2", "copies"), "widths": ("fixed-8", "stepped-8")}


def test_peers_from_other_libraries() -> None:
    """The table of the page is what the committed runs say, each arm against two others."""
    found = summary.other_libraries(RESULTS)
    said = {cells[0]: cells[1:] for cells in table("growth.md", "Peers from other libraries")}
    for which, rows in LIBRARIES.items():
        for what, arm in rows.items():
            of = found[which][arm]
            over = [of.get("over", {}).get(other) for other in AGAINST[which]]
            assert said.pop(what) == [signed(of["loss"]), *(signed(one) if one else "" for one in over)], arm
    assert not said


def test_what_growing_is_worth_on_the_second_cnn() -> None:
    """How many random seeds reach the large network's loss, and how many blocks there are."""
    thin = read("worth.json")["workloads"]["thin"]
    (large,) = (end for end in thin["first"]["ends"]["fixed-8"] if end["share"] == 1.0)
    losses = thin["unknown_size"]["loss_at_full_budget"]["values"]
    assert sum(loss <= large["loss"] for loss in losses) == 2
    assert len(losses) == 3
    assert thin["share_of_flops"] is None
    assert set(thin["blocks"]["1.0"]) == {3, 4}
    best = [
        min(ends, key=lambda name: ends[name][-1]["loss"]) for ends in (fixed(thin), fixed(thin["first"]))
    ]
    assert best == ["fixed-2", "fixed-4"]


TRIED = {
    "copy": "the new block is a copy, its output layers are not zeroed",
    "copy-state": "likewise, with a copy of its optimizer state",
    "random": "it is initialised anew, its output layers are not zeroed",
    "lower": "a learning rate lower by √2 for everything, from the growth on",
    "warm-up": "the learning rate of everything rises anew in 100 steps",
    "slow-new": "that of the new block rises in 100 steps",
    "blend": "alpha grows in 200 steps",
    "isolated": "200 steps in isolation, then alpha in 200 steps",
    "fast-new": "three times the learning rate for the new block",
    "start": "in front of the first block",
}


def test_what_was_tried() -> None:
    """The table of the page; and what helped was run once more, and helped again."""
    worth, rows = read("worth.json"), table("growth.md", "What was tried to make it better")
    said = {cells[0]: cells[1:3] for cells in rows}
    assert said.keys() == set(TRIED.values())
    for name, what in TRIED.items():
        found = [worth[which].get(f"deepen-1-2-{name}") for which in ("tried", "tried_again")]
        assert said[what] == ["" if one is None else over_the_control(one) for one in found], name
    helped = {name for name, found in worth["tried"].items() if found.get("helps")}
    assert worth["tried_again"].keys() == helped | {"deepen-1-2"}
    assert all(worth["tried_again"][name]["helps"] for name in helped)


def test_the_rate_of_two_blocks() -> None:
    """By how much the lower learning rate, which was added as a control, is better for them."""
    found = read("worth.json")["tried_again"]["deepen-1-2"]
    pairs = zip(found["below_best_fixed"]["values"], found["below_lower_rate"]["values"], strict=True)
    gains = [higher - lower for higher, lower in pairs]
    said = f"{statistics.fmean(gains):.3f} ± {statistics.stdev(gains) / math.sqrt(len(gains)):.3f} nats lower"
    assert said in " ".join((ROOT / "docs" / "growth.md").read_text(encoding="utf-8").split())


def over_the_control(found: Any) -> str:
    difference = found["over_the_control"]
    return f"{difference['mean']:.4f} ± {difference['standard_error']:.4f}"


def fixed(told: Any) -> dict[str, Any]:
    """The ends of the fixed sizes."""
    return {name: ends for name, ends in told["ends"].items() if name.startswith("fixed-")}


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


def test_the_table_of_growth_is_that_of_the_committed_results() -> None:
    """And what won there is what the page says."""
    found = json.loads((RESULTS / "growing.json").read_text(encoding="utf-8"))["workloads"]
    page = growing.PAGE.read_text(encoding="utf-8")
    assert page == growing.into_page(page, found)
    mean = {arm: sum(of_one["gain"][arm]["mean"] for of_one in found.values()) for arm in growing.ARMS[1:]}
    assert max(mean, key=mean.__getitem__) == scoring.LAYERS_FIRST
