"""Control flow: a file per loop. A loop knows the order of events and nothing else."""
