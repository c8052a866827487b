"""Runs, checkpoints, evaluation, comparisons, evidence and reports."""
