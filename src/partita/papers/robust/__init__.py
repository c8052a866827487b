"""Robustness: what holds when the world, or what is seen of it, is not as expected."""
