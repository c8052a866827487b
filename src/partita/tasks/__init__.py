"""What policies act on: control (native, Gymnasium), language (prompt and verifier), multi-turn worlds."""
