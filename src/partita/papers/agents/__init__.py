"""Agents: policies that act over several turns."""
