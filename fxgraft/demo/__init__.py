"""The demo: ``fxgraft demo`` grows a small GPT on a real text, against networks of fixed sizes.

===========  ==========================================================
`_text`      the text: sympy's sources, which are installed with torch
`_model`     the network, of any number of blocks
`_training`  one run: a fixed size or growth, until its FLOPs are spent
`_results`   what all runs came to: numbers, a table, sentences
`_plot`      the held-out loss over FLOPs, each arm labelled at its end
`_watching`  the terminal while the runs go on
===========  ==========================================================

It needs the ``demo`` extra; nothing else in fxgraft imports this package.

Group: tools. May import: what they show.
"""
