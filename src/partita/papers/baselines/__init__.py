"""The methods that others are compared with: not rows of the catalogue, but papers like any other."""
