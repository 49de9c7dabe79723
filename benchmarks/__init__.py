"""Measurements of fxgraft; each writes its results, with the machine they came from, to ``results/``."""
