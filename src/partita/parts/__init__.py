"""Baseline parts, a file per slot of the on-policy loop; each file begins with the slot itself."""
