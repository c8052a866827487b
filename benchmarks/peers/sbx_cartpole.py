"""PPO on CartPole-v1 in SBX (the API of Stable-Baselines3 on JAX), as `sb3_cartpole` measures that library.

    python -m benchmarks.peers.sbx_cartpole solve --seed 3     # the tuned settings of the shared model zoo

Prints one JSON line.
"""

from __future__ import annotations

from benchmarks.peers.sb3_cartpole import main
from sbx import PPO

if __name__ == "__main__":
    main("sbx", PPO, "sbx-rl", "jax")
