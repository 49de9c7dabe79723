"""What seeds have to do with optimizers: who owns which parameter, and in which group it is.

================  =====================================================================================
`registry`        parameter -> the seed that owns it, and the optimizer's group
`places`          finds the group of each parameter: saved, asked for, by rule
`_placement`      the rule
`requests`        an optimizer or groups that are asked for
`_kinds`          matrix, vector, norm, embedding
`census`          which groups hold what of which part of a model
`groups`          groups of a seed's own, kept in step with the schedulers
`_compatibility`  what an optimizer cannot take, refused at once
`_trial`          optimizers that are not known, tried on stand-ins
`element_wise`    whether an optimizer moves each entry of a parameter by itself
`fresh_state`     what an optimizer begins with, for new entries of a parameter that grows
`removal`         out of groups and states without a trace
`nested`          optimizers inside of optimizers
`wrapped`         what Accelerate puts around optimizers and schedulers
`gradients`       gradients that belong to one owner: dropped or clipped apart
`progress`        whether a seed is trained at all
================  =====================================================================================

Group: growth. May import: helpers, graphs, the host, telemetry, commands, gates.
"""
