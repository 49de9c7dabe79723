"""The manager: what a trainer and a controller speak to.

`manager` lists all calls. Each is a function of a manager in the file of its concept:

=============  =======================================================================
`germinating`  a new seed: germinate, plan
`transitions`  seeds that are there: blend, fossilize, cull, pause, resume; `together`
`growing`      the model's own layers: deepen, widen, fuse
`stepping`     what is done once per training step
`searching`    where to grow: explore, autogrow
`commanding`   commands, from any thread
`probes`       what seeds do: metrics, measure, at_alpha, shadow
`saving`       files, and the states of other frameworks
=============  =======================================================================

They work with what a manager is made of, which `core` wires:

=============  =======================================================================
`settings`     what a manager is made with, checked
`background`   changes that training does not wait for: `waiting` has those that are to land,
               `prefetch` builds modules, `preparing` has the next compiled for (`preparation`, by
               `compiler_help`) and lets it land (`landing`), `promised` is what is compiled for one
               that is live already
`together`     blocks whose changes land as one
`deepening`    new blocks in a stack, planned as one act
`widenings`    growths of channels, planned in an act
`dispatch`     carries commands out, and never raises
`reporter`     turns what happens into events and counts
`journal`      what sinks are told every few steps
`saver`        saves and loads a run: on one rank, on several, sharded
=============  =======================================================================

Group: growth. May import: helpers, graphs, the host, telemetry, commands, gates.
"""
