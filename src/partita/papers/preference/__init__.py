"""Preference: learning from comparisons, offline, iterated and online."""
