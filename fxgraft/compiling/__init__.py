"""``torch.compile`` for a host that changes: no recompile for what is known, no stall for what is new.

=============  =====================================================================================
`calls`        what a compiled graph depends on in a call, and how to make such a call up
`units`        which modules are compiled as a whole: the host, or its blocks
`variants`     the compiled code of one structure of one kind of unit, and the table that keeps them
`artifacts`    compiled code as bytes: made in one process, run in another
`job`          what the helper is asked for, and what comes of it
`helper`       the process that makes artifacts while the trainer goes on
`linking`      no fork while a thread is inside of the dynamic linker
`compiled`     all of it together for one host
=============  =====================================================================================
"""
