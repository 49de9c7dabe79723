"""The demo: ``python -m fxgraft.demo`` grows a small network on scikit-learn's digits.

It needs the ``demo`` extra; nothing else in fxgraft imports this package.
"""
