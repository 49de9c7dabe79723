"""Thin adapters to training frameworks. Each needs its framework, and nothing else does."""
