"""Where a seed can go: the table of slots, and the places that are found by what they are to a slot.

=================  ===========================================================================================
`selection`        the table of a host's slots, and how to choose among them
`places`           edges, inputs, elements and all calls of a module: places that the table does not list
`branching`        branches: the slots a seed may read from, and the regions that one merges
`structure`        which seeds a host has, and where: immutable, without tensors
`_gradient_terms`  whether a graft at an edge would regroup a sum of gradients
`walk`             steps through graphs: what a value is computed from, what from it, and the layers around it
=================  ===========================================================================================

Group: graphs. May import: helpers, passes.
"""
