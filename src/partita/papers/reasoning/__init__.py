"""Reasoning: language models trained on verifiable rewards."""
