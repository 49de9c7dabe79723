"""``torch.compile`` for a host that changes: no recompile for what is known, no stall for what is new.

=================  =====================================================================================
`_calls`           what a compiled graph depends on in a call, and how to make such a call up
`_opened`          arguments with their dataclasses opened
`units`            which modules are compiled as a whole: the host, or its blocks
`variants`         the compiled code of one structure of one kind of unit, and the table that keeps them
`_keys`            what code is shared by, and whether that is still so: looked at before each call
`_trials`          when code is compared with eager mode: in its first real calls
`_comparison`      how: both run on the call's own arguments, and what rounding can do is tried out
`_distance`        how far two values are from each other
`_artifacts`       compiled code as bytes: made in one process, run in another
`job`              what the compiler process is asked for, and what comes of it
`promises`         what it makes of a change that is live already
`helper`           that process as the trainer sees it: given one job after the other, in a thread
`_child`           that process as the system has it: started, spoken to by pipes, ended
`_pipe`            an end of a pipe to it, that never waits for ever
`_worker`          that process as it sees itself
`_payload`         what it is given: modules without weights
`_by_value`        classes and functions that it cannot import
`_torch_settings`  torch's settings, which code depends on too
`forwards`         what a structure puts into modules
`_host_units`      the units of a host, with those of seeds between blocks
`_readiness`       which forwards they run, and which there is code for
`_assumptions`     what code takes for granted, looked at before each call
`_running_unit`    what runs each call of one unit
`_wanted`          what the compiler process is to make
`compiled`         all of it together for one host
=================  =====================================================================================

Group: graphs. May import: helpers, passes.
"""
