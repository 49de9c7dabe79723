"""From a model to regions: runs of an example call, traced module by module.

===================  ==============================================================================
`capture`            the runs, and what was found in them
`example_runs`       runs of an example call, each as if the others had not been
`earlier`            the graphs of an earlier trace, followed where they are still right
`traces`             what a run does in the place of each module's ``forward``
`tracer`             one module, traced by running it; `proxy` stands for its values
`assuming`           what a trace assumes of its inputs
`intercept`          operations that ``torch.fx`` would not see
`modes`              one graph for train and eval mode
`boundary`           modules that are called from code without a graph
`clone`              a second module tree over the same tensors
`call_form`          the form of a call: what becomes an input, and what is a condition
`guarded_entry`      the ``forward`` in front of a graph, which checks the form of a call
`facts`              conditions on the world, as data
`exact`              what ``==`` leaves out in them: types of numbers, signs of zeros
`shadowing`          conditions where parameters have names of Python's own
`instruments`        lets recorders see what code reads and writes
`recorder`           what one region reads and writes; `code` reads bytecode, `world` knows globals
`code_reads`         what its functions read: globals, closures, defaults
`effects`            what a graph could not do again
`sizes`              conditions on inputs; `formulas` finds sizes of values on the way
`lengths`            how many values an operation returns
`condition_writer`   nodes of a graph as Python over the inputs
`preconditions`      all conditions of a graph, in front of it
`region`             a module with its graph, and the ``forward`` that runs
`codegen`            from a graph to a function
`merge`              several regions as one graph
`fallback`           what is done of a call of another form
`fingerprint`        what the code of a module depends on
`fingerprint_watch`  whether that is still so, before each call
`identities`         what stands for a value in it
`comparison`         a finished trace against the module's own code
`defaults`           how the default of a parameter reads in a generated signature
`fast_path`          slots that torch's fast path for transformer encoders goes around
`findings`           what code has read, as conditions
`contents`           what a Python object holds
`flat`               a graph as a flat list, for pickling
`following`          which module reads what another one returned
`inserted`           inserted blocks in the ``forward`` of the block beside them
`stand_ins`          built-in functions that look at what proxies stand for
===================  ==============================================================================

Group: graphs. May import: helpers, passes.
"""
