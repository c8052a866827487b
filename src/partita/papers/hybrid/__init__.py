"""Hybrid: supervised and reinforcement learning in one."""
