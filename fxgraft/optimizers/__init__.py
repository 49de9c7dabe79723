"""What seeds have to do with optimizers: who owns which parameter, and in which group it is.

===========  =============================================================
`registry`   parameter -> the seed that owns it, and the optimizer's group
`groups`     groups of a seed's own, kept in step with the schedulers
`wrapped`    what Accelerate puts around optimizers and schedulers
`gradients`  gradients that belong to one owner: dropped or clipped apart
`fitness`    what an optimizer cannot take, refused at once
`progress`   whether a seed is trained at all
===========  =============================================================
"""
