"""A seed: what is known of one grafted module, for as long as it lives.

==========  ============================================
`config`    what a seed is to be, as it is asked for
`seed`      the record of its life
`steering`  the buffers of its graft that follow the record
`stage`     the stages, and the transitions between them
`streams`   random streams of its own
`dropout`   dropout that draws from such a stream
`names`     a name, where none is given
`colours`   a colour for each stage
==========  ============================================

Group: the host. May import: helpers, graphs.
"""
