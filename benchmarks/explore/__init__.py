"""Which score tells where to grow: what an exploration says, against growing each candidate alone.

==========  ==================================================================
`plan`      what was decided before anything ran
`networks`  hosts whose places differ on purpose, and their candidates
`runs`      one run: the truth of a candidate, or the scores of an exploration
`steps`     what a training step costs with many candidates beside it
`rule`      what the plan's rule picks, and by how much the default is another
`page`      the results as a page
`guide`     the table in ``docs/guides/explore.md``
`results`   from parts to ``benchmarks/results/explore.json``
==========  ==================================================================
"""
