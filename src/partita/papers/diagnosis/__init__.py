"""Diagnosis: measures of what training did."""
