"""Deeper: further blocks in a stack, as copies of those that are there.

============  =====================================================================
`spread`      behind which blocks new ones stand
`copying`     a block's copy, with tensors of its own
`zeroing`     which layers to zero so that a block changes nothing, on its graph
`fresh`       a copy initialised anew, as the model does
`growing`     a new block, made and tried
============  =====================================================================
"""
