"""Groups of channels that can only grow together, and how they grow.

====================  ============================================================
`recording`           one run of a model, as operations
`layout`              what a dimension is made of: atoms, products, concatenations
`_grown_layout`       how it lies once atoms have grown
`_rules_table`        operation -> its rule, and what rules share
`_rules`              the same, with all rules entered:
`_rules_elementwise`  elementwise; along one dimension; pools
`_rules_shapes`       views, transposes, concatenations, parts
`_rules_products`     layers, matrix products, attention, embeddings
`_rules_norms`        normalisations
`_analysis`           layouts of all tensors of a run
`subject`             a model, its example call, and runs of it with other tensors
`groups`              what can grow
`_settings`           numbers in code that grow with it
`growth`              one growth of one group, planned
`_filling`            what new channels begin as
`_spreading`          tensors with more indices
`trying`              which groups can grow at all
`comparing`           the function is kept
`replacing`           wider tensors in the place of those that there are
`examples`            example inputs for a graph whose placeholders say their form
====================  ============================================================
"""
