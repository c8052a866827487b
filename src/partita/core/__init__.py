"""What every room stands on: batches, parts, recipes, papers, the registry, errors and checks."""
