"""The host: a model that was traced, and whose structure can change.

====================  ================================================================================
`tracing`             from a model to a host
`host`                the host itself, an ``nn.Module``
`_appearance`         what a host looks like to code that reads the class of a model
`engine`              how a structure is swapped, and runs otherwise for a moment: for the library's own use
`_traced`             what a trace found, and the places that follow from it
`_members`            members of a model whose names a host has for something else
`_links`              who hears of what happens to a host
`_running`            the forwards of a structure, installed in the model's modules, plain or compiled
`_ownership`          which tensors are the host's own: what a seed must not have
`_classes`            the classes that generated code is right for
`_copies`             deep copies of a host that live: averages that lack what grew
`receiving`           a ``state_dict`` that says of other seeds: the host grows them, or refuses
`_steered`            stage and alpha of seeds, where a ``state_dict`` of another moment is loaded
`_tied_weights`       tied weights stay tied where a host is converted
`writing`             models that write themselves to a folder, which has no place for what grew
`compile_report`      what was compiled for a host, how often, and why
`_unmet`              whether a call is of the form that the host was traced in
`example`             the form of the example call, for who traces the model again
`_explain`            what became of each module, and why; `_explained` writes it as text
`_table`              a host as a table, ``print(host)``
`changed_attributes`  attributes that were set after tracing, and that a trace relies on
`run_summary`         a host in a few lines, for the log of a run
`channels`            the channels that the host can grow wider by
`depth`               how deep the model's configuration says that it is
`_example_call`       the example call, kept for comparison
`insertions`          inserted blocks as places like others: regions and slots in them
`numbers`             the numbers that blocks have, ``layer_idx``
`plain`               a module without what the host has put into it
`renewing`            a host whose layers have other sizes, traced anew
`now`                 the form that a host has now, which what is prepared for it is for
`stacks`              containers of alike blocks that run one after the other
`values`              what the value at a slot is like now
`widened`             what a host remembers of a growth of its channels
`_observing`          the sizes of values in an inserted block that grew wider alone
`wrapped`             whether a ``DistributedDataParallel`` is around a host
====================  ================================================================================

Group: the host. May import: helpers, graphs.
"""
