"""What growing is worth, against networks of fixed size: ``python -m benchmarks.worth --help``.

What is compared, and what counts as a win, was fixed before the first run: ``PREREGISTERED.md``, and for
growth to an unknown size ``PREREGISTERED_SECOND.md``; ``PREREGISTERED_THIRD.md`` has a task for many blocks.

============  ==========================================================================
prepare       where the data comes from; makes it ready
data          the data: characters of sympy's sources, Fashion-MNIST
models        the two networks, of any depth
workloads     a network, its data and its optimizer, together
protocols     how long, how many, which learning rates: short, full, quick
arms          what is compared: fixed sizes, growth, peers by hand
learners      a network in training that can grow: plain, by hand, by fxgraft
costs         FLOPs and seconds, by what they were spent on
schedule      warm-up, constant, decay
training      one run: a constant part, and a decay for each of its ends; resumes after a kill
plan          which runs are still missing, given the results so far
results       the results as they are kept, one file for each run
analysis      envelope, shares, standard errors
summary       ``worth.json`` and the table of it
plot          loss over FLOPs
============  ==========================================================================
"""
