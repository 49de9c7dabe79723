"""The transitions of seeds, and the check that isolated ones do not affect the host.

Each transition is a transaction, whole or not at all:

===================  =======================================================================
`building`           from a blueprint to a module that is known to fit its slot
`_fatal_operations`  operations whose backward pass ends the process
`mode_wrappers`      what that is wrapped in where the mode asks for another form
`plan`               what a germination would change, worked out without changing anything
`order`              the order of the seeds at one slot
`change`             what one swap is to bring, as data
`swap`               one structure for another on a host, as one step of a transaction
`lifecycle`          the transitions, on host, optimizers and hooks at once
`_refusals`          changes that no transition may bring
`inactivity`         why a seed does not run, or is not trained
`_channel_axis`      which axis of a value has its channels
`_averages`          what averages of an inserted block begin with
`act`                changes of several seeds that are planned first, and are applied as one
`act_plan`           what an act would change, found by applying it for a moment
===================  =======================================================================

Isolation, and temporary runs of a host in another form:

===================  ======================================================================
`isolation_check`    compares the host's gradients with and without the seeds' paths
`isolation_monitor`  when that is checked, and what becomes of what is found
`_isolated_inputs`   says where an input's gradient leaves out a seed that blends
`probing`            a host temporarily with another alpha of one seed, or in a shadow pass
`generators`         what an evaluation draws from, so that two of them draw the same
===================  ======================================================================

Group: growth. May import: helpers, graphs, the host, telemetry, commands, gates.
"""
