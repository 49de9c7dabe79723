"""What becomes of seeds that stay: a plain module, and weights that have taken them in.

=================  =====================================================================
`unwrapping`       from a host with fossils to a module that runs without fxgraft
`_plain_module`    how that module is made
`_configurations`  the configuration with which a class makes the sizes that a model has
`_example_runs`    the host's example call, run on its plain forms
`_containers`      inserted blocks as children of their containers
`transplanting`    what grew, in a plain model of that size
`_plain_code`      classes with a generated ``forward``, for such modules
`folding`          linear fossils, merged into the layers in front of them
`linear_maps`      which modules are affine, and which map each is
`_producers`       an affine map, merged into the weights of a layer
=================  =====================================================================

Group: growth. May import: helpers, graphs, the host, telemetry, commands, gates.
"""
