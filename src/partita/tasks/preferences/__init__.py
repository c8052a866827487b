"""Preferences: prompts with responses, and which of them are preferred."""
