"""The life of seeds: how they come, change and go, and the proof that the host does not feel them.

Each transition is a transaction, whole or not at all:

===================  ========================================================================================
`nursery`            from a blueprint to a module that is known to fit its slot
`_fatal_operations`  operations whose backward pass ends the process
`mode_wrappers`      what that is wrapped in where the mode asks for another form
`plan`               what a germination would change, worked out without changing anything
`order`              the order of the seeds at one slot
`change`             what one swap is to bring, as data
`swap`               one structure for another on a host, as one step of a transaction
`lifecycle`          the transitions, on host, optimizers and hooks at once
`_refusals`          changes that no transition may bring
`inactivity`         why a seed does not run, or is not trained
`act`                changes of several seeds that are planned first, and land as one
===================  ========================================================================================

Isolation, and how a host runs for a moment as if:

===================  ========================================================================================
`isolation_check`    compares the host's gradients with and without the seeds' paths
`isolation_monitor`  when that is checked, and what becomes of what is found
`_isolated_inputs`   says where an input's gradient leaves out a seed that blends
`shadow`             the shadow pass: isolated seeds run at alpha 1, and only they learn
`probing`            a host for a moment as if a seed had another alpha
`generators`         what an evaluation draws from, so that two of them draw the same
===================  ========================================================================================

Group: growth. May import: helpers, graphs, the host, telemetry, commands, gates.
"""
