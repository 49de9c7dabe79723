"""From a model to regions: runs of an example call, traced module by module.

===================  ==============================================================================
`capture`            the runs, and what was found in them
`_example_runs`      runs of an example call, each as if the others had not been
`first_call`         what the first call of a model sets once and for all
`earlier`            the graphs of an earlier trace, followed where they are still right
`traces`             what a run does in the place of each module's ``forward``
`_tracer`            one module, traced by running it; `_proxy` stands for its values
`_assuming`          what a trace assumes of its inputs
`intercept`          operations that ``torch.fx`` would not see
`_modes`             one graph for train and eval mode
`_boundary`          modules that are called from code without a graph
`clone`              a second module tree over the same tensors
`call_form`          the form of a call: what becomes an input, and what is a condition
`_guarded_entry`     the ``forward`` in front of a graph, which checks the form of a call
`_facts`             conditions on the world, as data
`_exact`             what ``==`` leaves out in them: types of numbers, signs of zeros
`_shadowing`         conditions where parameters have names of Python's own
`_instruments`       lets recorders see what code reads and writes
`_recorder`          what one region reads and writes; `_code` reads bytecode, `_world` knows globals
`_code_reads`        what its functions read: globals, closures, defaults
`_effects`           what a graph could not do again
`_sizes`             conditions on inputs; `_formulas` finds sizes of values on the way
`_lengths`           how many values an operation returns
`_condition_writer`  nodes of a graph as Python over the inputs
`_preconditions`     all conditions of a graph, in front of it
`region`             a module with its graph, and the ``forward`` that runs
`codegen`            from a graph to a function
`merge`              several regions as one graph
`fallback`           what is done of a call of another form
`fingerprint`        what the code of a module depends on
`fingerprint_watch`  whether that is still so, before each call
`identities`         what stands for a value in it
`_comparison`        a finished trace against the module's own code
`_defaults`          how the default of a parameter reads in a generated signature
`_fast_path`         slots that torch's fast path for transformer encoders goes around
`_findings`          what code has read, as conditions
`_contents`          what a Python object holds
`_flat`              a graph as a flat list, for pickling
`following`          which module reads what another one returned
`_inserted`          inserted blocks in the ``forward`` of the block beside them
`_stand_ins`         built-in functions that look at what proxies stand for
===================  ==============================================================================

Group: graphs. May import: helpers, passes.
"""
