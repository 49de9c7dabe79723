"""From a model to regions: runs of an example call, traced module by module.

===================  =========================================================================================
`capture`            the runs, and what was found in them
`_example_runs`      runs of an example call, each independent of the others
`first_call`         what the first call of a model sets once and for all
`earlier_trace`      the graphs of an earlier trace, used again where they are still valid
`traces`             what a run does in the place of each module's ``forward``
`_tracer`            one module, traced by running it; `_proxy` has the proxies of its values
`trace_operators`    operators that a trace puts into a graph
`_assuming`          what a trace assumes of its inputs
`intercept`          operations that ``torch.fx`` would not see
`_modes`             one graph for train and eval mode
`_boundary`          modules that are called from code without a graph
`clone`              a second module tree over the same tensors
`call_form`          the form of a call: what becomes an input, and what is a condition
`_guarded_entry`     the ``forward`` in front of a graph, which checks the form of a call
`_facts`             conditions on values that the code read (guards), as data
`_exact`             exact conditions: types of numbers, signs of zeros, builtins that parameters hide
`_instruments`       lets recorders see what code reads and writes
`_recorder`          what one region reads and writes; `_code` reads bytecode, `_external_state` knows globals
`_code_reads`        what its functions read: globals, closures, defaults
`_effects`           what a graph could not do again
`_sizes`             conditions on inputs
`_lengths`           how many values an operation returns
`_condition_writer`  nodes of a graph as Python over the inputs
`_size_formulas`     the sizes of values on the way, as formulas over those of the inputs
`_preconditions`     all conditions of a graph, in front of it
`region`             a module with its graph, and the ``forward`` that runs
`codegen`            from a graph to a function
`merge`              several regions as one graph
`fallback`           calls of another form: counted, reported, run without seeds
`fingerprint`        what the code of a module depends on
`fingerprint_watch`  whether that is still so, before each call
`identities`         the hashable form of a value in it
`_comparison`        a finished trace against the module's own code
`_fast_path`         slots that torch's fast path for transformer encoders goes around
`_findings`          what code has read, as conditions
`_contents`          what a Python object holds
`_flat`              a graph as a flat list, for pickling
`data_flow`          which module reads what another one returned
`_inserted`          inserted blocks in the ``forward`` of the block beside them
`_builtins`          ``isinstance``, ``type``, ``len`` and ``int``, for proxies
===================  =========================================================================================

Group: graphs. May import: helpers, passes.
"""
