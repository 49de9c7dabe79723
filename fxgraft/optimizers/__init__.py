"""What seeds have to do with optimizers: who owns which parameter, and in which group it is.

===========  =============================================================
`registry`   parameter -> the seed that owns it, and the optimizer's group
`placement`  the rule by which a parameter of a seed finds its group
`kinds`      matrix, vector, norm, embedding
`census`     which groups hold what of which part of a model
`groups`     groups of a seed's own, kept in step with the schedulers
`leaving`    out of groups and states without a trace
`wrapped`    what Accelerate puts around optimizers and schedulers
`gradients`  gradients that belong to one owner: dropped or clipped apart
`fitness`    what an optimizer cannot take, refused at once
`progress`   whether a seed is trained at all
===========  =============================================================
"""
