"""Where else jobs and recipes can run."""
