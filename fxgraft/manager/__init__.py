"""The manager: what a trainer and a controller speak to.

============  ========================================================================
`manager`     the façade: every call of a user's
`background`  changes that training does not wait for; `prefetch` builds their modules
`together`    blocks whose changes land as one
`deepening`   new blocks in a stack, planned as one act
`dispatch`    carries commands out, and never raises
`reporter`    turns what happens into events and counts
`journal`     what sinks are told every few steps
`settings`    what a manager is made with, checked
`saver`       saves and loads a run: on one rank, on several, sharded
============  ========================================================================
"""
