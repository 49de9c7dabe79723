"""Small helpers. They import nothing else of fxgraft.

====================  ======================================================================================
`bits`                comparison of tensors bit by bit
`tables`              tables, as plain text or for rich, and a read-only mapping that prints as one
`tensors`             the local part of a DTensor, random tensors, what rounding takes
`flops`               counting FLOPs
`hooks`               hooks on modules
`interleaved_timing`  times of training steps that can be compared
`interrupts`          Ctrl-C: a change is complete, or it has not happened
`lazy_modules`        modules that are imported when they are first used
`losses`              the loss of a training step as one number
`line_file`           a file of lines that is appended to while a run goes on
`reading`             objects from data that comes from outside: types, names and bounds, checked by msgspec
`text`                text for messages
`threads`             threads that the end of the program waits for, but not forever
`validate`            checks of arguments: an integer, a number, True or False
====================  ======================================================================================

Group: helpers. May import: nothing else of fxgraft.
"""
