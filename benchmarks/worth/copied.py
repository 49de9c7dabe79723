"""The fourth experiment: blocks that come as copies, against fixed sizes. See PREREGISTERED_FOURTH.md."""

from __future__ import annotations

from typing import Any

from benchmarks.worth.analysis import Arms, estimate
from benchmarks.worth.arms import COPIES, STEPPED, ZEROED
from benchmarks.worth.plan import plan_of
from benchmarks.worth.questions import told, with_error
from benchmarks.worth.unknown import below_best

END = 1.0


def answers(arms: Arms) -> dict[str, Any]:
    """For each arm its loss; for those that grow, how far it is below the best control."""
    plan = plan_of(arms.protocol, arms.workload, arms.records)
    controls = [name for name in arms.arms if name not in (COPIES, ZEROED) and arms.seeds(name)]
    found: dict[str, Any] = {}
    for name, arm in arms.arms.items():
        if not (seeds := arms.seeds(name)):
            continue
        ends = [arms.curves[name, seed].at_share(END) for seed in seeds]
        found[name] = {
            "loss": told(estimate([end.loss for end in ends])),
            "learning_rate": plan.rate(arm),
            "random_seeds": seeds,
        }
        if name in (COPIES, ZEROED):
            stepped = [control for control in controls if control.startswith(STEPPED)]
            found[name] |= {
                "below_best_fixed": below_best(arms, name, END, END),
                "below_best_stepped": below_best(arms, name, END, END, stepped),
            }
    if COPIES in found and ZEROED in found:
        found[COPIES]["below_zeroed"] = below_best(arms, COPIES, END, END, [ZEROED])
    return found


def table(found: dict[str, Any]) -> list[str]:
    """Markdown, the lowest loss first."""
    heads = ["arm", "test loss", "learning rate", "random seeds", *COLUMNS.values()]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, of in sorted(found.items(), key=lambda item: item[1]["loss"]["mean"]):
        cells = [name, with_error(of["loss"]), f"{of['learning_rate']:g}", str(len(of["random_seeds"]))]
        lines.append(f"| {' | '.join([*cells, *(_against(of.get(key)) for key in COLUMNS)])} |")
    return lines


COLUMNS = {
    "below_best_fixed": "below the best fixed size, nats (which)",
    "below_best_stepped": "below the best with a rate that falls likewise, nats (which)",
    "below_zeroed": "below the same with zeroed output layers, nats",
}


def _against(found: dict[str, Any] | None) -> str:
    return "" if not found else f"{with_error(found)} ({found['best_fixed']})"
