"""The manager: what a trainer and a controller speak to.

`manager` lists all calls. Each is a function of a manager in the file of its concept:

==============  ========================================================================
`_germinating`  a new seed: germinate, plan
`_transitions`  seeds that are there: blend, fossilize, cull, pause, resume; `_together`
`_growing`      the model's own layers: deepen, widen, fuse
`_stepping`     what is done once per training step
`_searching`    where to grow: explore, autogrow
`_commanding`   commands, from any thread
`_probes`       what seeds do: metrics, measure, at_alpha, shadow
`_saving`       files, and the states of other frameworks
==============  ========================================================================

They work with what a manager is made of, which `_core` wires:

=============  ===========================================================================================
`settings`     what a manager is made with, checked
`terms`        arguments of autogrow that a callback or a trainer is given, checked
`_background`  changes that training does not wait for: `_waiting` has those that are still to be applied,
               `_prefetch` builds modules, `_preparing` has the next compiled for (`_preparation`, by
               `_compiler_help`, which also has what is compiled for one that is live already), and lets
               it be applied once all ranks can (`_agreement`)
`_together`    blocks whose changes are applied as one
`_deepening`   new blocks in a stack, planned as one act
`_widenings`   growths of channels, planned in an act
`dispatch`     carries commands out, and never raises
`reporter`     turns what happens into events and counts
`_journal`     what sinks receive every few steps
`_saver`       saves and loads a run: on one rank, on several, sharded
=============  ===========================================================================================

Group: growth. May import: helpers, graphs, the host, telemetry, commands, gates.
"""
