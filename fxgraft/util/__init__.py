"""Small helpers that know nothing of hosts or seeds. They import nothing else of fxgraft."""
