"""The host: a model that was traced, and whose structure can change.

=================  =========================================================================================
`tracing`          from a model to a host
`host`             the host itself, an ``nn.Module``
`_appearance`      what a host looks like to code that reads the class of a model
`engine`           swaps structures, runs a host temporarily in another form: for the library's own use
`_traced`          what a trace found, and the places that follow from it
`_members`         members of a model whose names a host has for something else
`_own_methods`     models that have a ``state_dict`` or a ``load_state_dict`` of their own
`_links`           callbacks on what happens to a host, and its deep copies that live: averages, say
`_running`         the forwards of a structure, installed in the model's modules, plain or compiled
`_own_tensors`     the host's own tensors: no seed has them, and tied ones stay tied
`state_loading`    a ``state_dict`` with other seeds: the host inserts them, or refuses
`steering`         the tensors by which grafts know stage and alpha, and a ``state_dict`` with others
`save_pretrained`  models that write themselves to a folder, which has no place for what grew
`compile_report`   what was compiled for a host, how often, and why
`_call_check`      whether a call is of the form that the host was traced in
`example`          the example call: its form, to trace the model again, and a copy, for comparison
`_explain`         what became of each module, and why; `_explanation_text` writes it as text
`summary`          a host in a few lines: ``print(host)``, and for the log of a run
`channels`         the channels that the host can grow wider by, and what is remembered of each growth
`growth_history`   what the growths of channels say of seeds that come and go
`numbering`        the numbers of blocks, and how many of them the model's configuration says there are
`insertions`       inserted blocks as places like others: regions and slots in them
`plain`            a module without what the host has put into it
`retracing`        a host whose layers have other sizes is traced again
`current_form`     the form of a host now, and of its modules: whether prepared code, or a trace, still fits
`same_code`        whether a host still runs what it ran: asked in every training step
`stacks`           containers of alike blocks that run one after the other
`values`           what the value at a slot is like now
`_observing`       the sizes of values in an inserted block that grew wider alone
`wrapped`          whether a ``DistributedDataParallel`` is around a host
=================  =========================================================================================

Group: the host. May import: helpers, graphs.
"""
