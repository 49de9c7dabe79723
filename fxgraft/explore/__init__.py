"""Where should it grow? Many candidates learn in isolation beside a live run, ranked by what they give.

======================  ===================================================================
`autogrow`              growth by itself: explores when it is time, and keeps what helps
`_restarting`           the best candidate is grown once more from its initial values
`_cap`                  what a candidate is, and how many are explored at once
`candidates`            what may be explored, by what was chosen
`_clock`                when it is time for the next round
`_cost`                 what a growth costs beside the training
`_depths`               deepening as a candidate, isolated while it is tried
`_candidate_state`      one candidate of an exploration, and what became of it
`_fitting`              what fits at which slot, up to a cap
`_example_run`         what the example call shows of blocks: FLOPs, arguments
`exploration`           one exploration, from its germination to its end
`_gradients`            what the gradients of candidates say before they learn
`_other_sizes`          the sizes of values that follow the input
`_memory`               the memory of training that a budget counts
`measuring`             the contributions of many seeds, from one evaluation each
`_outcome`              what comes of the candidates: measured, then ranked
`_germinating`          the candidates are germinated
`_growth_state`         what a growth remembers
`_price`                what the FLOPs of a part would bring in further training without it
`presets`               candidates for families of models
`_restoring`            the error for a state that cannot be continued
`_rounds`               the rounds of an automatic growth, and what follows one
`scoring`               what the candidates are ranked by
`exploration_settings`  for how long a host is explored, and what is kept
`_step_cost`            how long a step of a candidate takes
`_summary`              a growth as text: where it grew, what that gave, what it cost
`_trial`                the candidate on trial: it stays, or fades out
`growth_settings`       the settings of an automatic growth, and its budget
`table`                 what was found, as rows and as text
`_widths`               widening as a candidate, tried as a branch in its place
======================  ===================================================================

Group: growth. May import: helpers, graphs, the host, telemetry, commands, gates.
"""

from fxgraft.explore.autogrow import AutoGrowth
from fxgraft.explore.exploration import Exploration
from fxgraft.explore.scoring import SCORES
from fxgraft.explore.table import Row
from fxgraft.util.lazy_modules import lazy_modules

__all__ = ["SCORES", "AutoGrowth", "Exploration", "Row"]

__getattr__, __dir__ = lazy_modules(__name__, "presets")
