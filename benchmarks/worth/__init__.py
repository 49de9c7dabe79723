"""What growing is worth, against networks of fixed size: ``python -m benchmarks.worth --help``.

What is compared, and what counts as a win, was fixed before the first run: ``PREREGISTERED.md``, and for
growth to an unknown size ``PREREGISTERED_SECOND.md``; ``PREREGISTERED_THIRD.md`` has a task for many blocks,
``PREREGISTERED_FOURTH.md`` blocks that come as copies, ``PREREGISTERED_FIFTH.md`` the same on another text
and in longer runs, ``PREREGISTERED_SIXTH.md`` guesses of the size, ``PREREGISTERED_SEVENTH.md`` blocks that
are measured several times, and ``ADDED_AFTERWARDS.md`` what was added when results were known.

============  ==========================================================================
prepare       where the data comes from; makes it ready
data          the data: characters of sympy's sources and of the Brown corpus, Fashion-MNIST
models        the networks, of any depth or width
workloads     a network, its data and its optimizer, together
protocols     how long, how many, which learning rates: short, full, quick
arm           one way to come to a trained network
arms          what is compared: fixed sizes, growth, peers by hand
guesses_arms  the same for guesses of the size
measured_arms the same for blocks that are measured several times
learner       a network in training that can grow
by_hand       those that grow without fxgraft: G_stack, Net2Net; stochastic depth
by_fxgraft    those that fxgraft grows
by_width      those that it grows in width
by_peft       adapters on a frozen host, by PEFT
by_gromo      growth in width by gromo
learners      all of them by name
costs         FLOPs and seconds, by what they were spent on
schedule      warm-up, constant, decay
training      one run: a constant part, and a decay for each of its ends; resumes after a kill
plan          which runs are still missing, given the results so far
progress      how long the missing runs take
running       makes them, and tells which there are
results       the results as they are kept, one file for each run
repeat        whether runs that were made again come to the same
questions     the three questions, for the first experiment
unknown       the same, for growth to a size that nobody knows
tried         what may make growth better, each beside its control
copied        blocks that come as copies, against fixed sizes
elsewhere     the same on another text, and in longer runs
against_best  an arm beside the best fixed size
guesses       what a wrong guess of the size costs
measured      growth whose blocks are measured several times, beside the best fixed size
peers         adapters, and growth in width, beside the others
analysis      envelope, shares, standard errors
experiments   which protocols belong to which experiment
summary       ``worth.json``: the answers of all experiments
table         the same as Markdown
plot          loss over FLOPs
plot_copied   blocks that come as copies: the loss of each arm
============  ==========================================================================
"""
