"""From a model to regions: runs of an example call, traced module by module."""
