"""A seed: the record of one grafted module.

=========  ================================================================
`config`   the description of a seed, which calls, commands and files share
`seed`     the record: stage, alpha, ramp, counts
`stage`    the stages, the transitions between them, and a colour for each
`streams`  random streams of its own
`dropout`  dropout that draws from such a stream
`names`    a name, where none is given
=========  ================================================================

Group: the host. May import: helpers, graphs.
"""
