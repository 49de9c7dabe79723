"""Is the host's training what it would be without the seeds? And how it runs for a moment as if.

============  ===================================================================
`check`       compares the host's gradients with and without the seeds' paths
`inputs`      says where an input's gradient leaves out a seed that blends
`monitor`     when it is checked, and what becomes of what is found
`shadow`      the shadow pass: isolated seeds run at alpha 1, and only they learn
`probing`     a host for a moment as if a seed had another alpha
`generators`  what an evaluation draws from, so that two of them draw the same
============  ===================================================================
"""
