"""Measurements of speed and memory, and comparisons. A package, as wheels of others (opacus) bring one of that name."""
