"""Pictures of a host: its graph by modules, with slots, shapes, and seeds in the colours of their stages.

Layout is graphviz's, through pydot: ``pip install 'fxgraft[show]'``, and the program ``dot``, which comes
with the system's package ``graphviz``.
"""

from fxgraft.drawing.picture import Picture

__all__ = ["Picture"]
