"""Groups of channels that can only grow together, and how they grow.

====================  ==================================================================
`recording`           one run of a model, as operations
`layout`              what a dimension is made of: atoms, products, concatenations
`_grown_layout`       which indices of a grown dimension are new, and tensors with these
`_rules_table`        operation -> its rule, and what rules share; the rules themselves:
`_rules_elementwise`  elementwise; along one dimension; pools; normalisations
`_rules_shapes`       views, transposes, concatenations, parts of equal sizes
`_rules_items`        items and parts by numbers, slices and tensors
`_rules_products`     layers, matrix products, attention, embeddings
`_analysis`           layouts of all tensors of a run
`subject`             a model, its example call, and runs of it with other tensors
`groups`              what can grow
`settings`            numbers in code that grow with it
`growth`              one growth of one group, planned
`_filling`            what new channels begin as
`_guessing`           which of several wider models computes the same, where rounding does not tell
`trying`              which groups can grow at all
`comparing`           the function is kept
`_output_pairs`       two outputs, element by element, and what rounding can do to them
`_few_digits`         runs whose operations are rounded to few digits, as some inside are
`_locating`           where it shows that the function is not kept
`replacing`           wider tensors in the place of those that there are
====================  ==================================================================
"""
