"""The parameters of seeds in optimizers: which seed owns each, and in which group it is.

================  ============================================================================================
`registry`        parameter -> the seed that owns it, and the optimizer's group
`places`          finds the group of each parameter: saved, asked for, by rule
`_placement`      the rule
`requests`        an optimizer or groups that are asked for
`group_index`     which groups hold what of which part of a model: matrix, vector, norm, embedding
`groups`          groups of a seed's own, kept in step with the schedulers
`_compatibility`  what an optimizer cannot take, refused at once
`_trial`          optimizers that are not known, tried on dummy parameters
`entries`         whether an optimizer moves each entry of a parameter by itself, and what new ones begin with
`removal`         out of groups and states without a trace
`wrapped`         optimizers inside of optimizers, and in what Accelerate and Fabric put around them
`gradients`       gradients that belong to one owner: dropped or clipped apart
`progress`        whether a seed is trained at all
================  ============================================================================================

Group: growth. May import: helpers, graphs, the host, telemetry, commands, gates.
"""
