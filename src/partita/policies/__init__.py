"""Networks that act: actor_critic for control, language for causal language models."""
