"""How seeds come, change and go: each transition a transaction, whole or not at all.

============  ========================================================================================
`nursery`     from a blueprint to a module that is known to fit its slot
`plan`        what a germination would change, worked out without changing anything
`order`       the order of the seeds at one slot
`change`      what one swap is to bring, as data
`swap`        one structure for another on a host, as one step of a transaction
`lifecycle`   the transitions, on host, optimizers and hooks at once
`inactivity`  why a seed does not run, or is not trained
`act`         changes of several seeds that are planned first, and land as one
============  ========================================================================================
"""
