"""Deeper: further blocks in a stack, as copies of those that are there.

==================  ===============================================================
`spread`            behind which blocks new ones stand
`copying`           a block's copy, with tensors of its own
`zeroing`           which layers to zero so that a block changes nothing, on its graph
`zeroing_in_a_run`  the same for code without a graph, on what it did in the example call
`operations`        what is zero where its input is, and what is a sum or a product
`not_found`         why there are no such layers
`fresh`             a copy initialised anew, as the model does
`growing`           a new block, made and tried
==================  ===============================================================
"""
