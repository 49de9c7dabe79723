"""Which protocols belong to which experiment, and their titles; all of them have one summary."""

from __future__ import annotations

TRIED = {
    "tried": "what was tried to make growth better",
    "tried_again": "what of that helped, on other random seeds",
}
"""Protocols about one block that grows to two."""
COPIED = "copies"
"""The fourth experiment."""
PEERS = {"adapters": "adapters on a frozen host", "widths": "growth in width"}
"""Protocols with peers from other libraries."""
ELSEWHERE = ("brown", "long")
"""Protocols of the fifth experiment; each has one workload, of the same name."""
EXTRA = {"long": "long_extra"}
"""Of these, which have a control that was added, and its protocol."""
GUESSED = "guesses"
"""The sixth experiment."""
MEASURED = "measured"
"""The seventh experiment."""
LATER = (
    *TRIED, "tried_control", COPIED, "copies_extra", *PEERS, *ELSEWHERE, *EXTRA.values(), GUESSED, MEASURED,
)  # fmt: skip
"""All that came after the first three."""
