"""Pure tensor functions: returns, advantages, ratios, divergences, log-probabilities."""
