"""What the experiment on objectives varies, and for how long it runs: shared by its parts."""

RADII, BOUNDED = (0.03, 0.1, 0.3), ("trust", "trust_step")
WARM_UP, BLEND, AFTER, LONGEST = 300, 100, 300, 3000  # steps; AFTER includes BLEND
BLENDED_AFTER = (50, 300, 1000)
BATCHED = (("trust", 0.03), ("trust", 0.1), ("trust_step", 0.1))  # at other batch sizes as well
PROBE = 25  # steps between two looks at the branch's size
BATCH = {"CNN": 32, "MLP": 64}
INTRODUCTION = f"""\
{WARM_UP} steps of training, then a seed (MLP 64-6-10: `mlp` of 32 hidden units behind the ReLU, fossilized;
CNN: `conv_bottleneck` behind the second ReLU, held at alpha 1) is isolated for so many steps and measured at
alpha 1; then blended in {BLEND} steps, {AFTER} in all, and measured again. Percentages are changes of the
held-out loss, paired by random seed: mean ± standard deviation (how often lower). The host alone is alpha 0,
or the host trained for as long without a seed. 4 random seeds for the MLP, 3 for the CNN."""
MARKER = "## Decision\n"  # from here on the Markdown is written by hand, and kept
STRESS = "SGD .5"  # for invariant 14 only, on the MLP
