"""Theory: exact algorithms whose numbers are checked against their theorems."""
