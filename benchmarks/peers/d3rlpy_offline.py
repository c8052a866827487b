"""TD3+BC and IQL in d3rlpy: updates a second on a fixed dataset.

    python -m benchmarks.peers.d3rlpy_offline td3_bc --threads 1
    python -m benchmarks.peers.d3rlpy_offline iql --threads 1

Its own draw of a batch and `update` at its defaults, which is what its `fit` repeats, without the logging around it. Of
TD3+BC an update steps the critics, and every second one the actor and the targets as well; of IQL critics, value, actor
and target, every time. Both have two critics. `benchmarks/replay.py` has the workload. Prints one JSON line.
"""

from __future__ import annotations

import d3rlpy
import numpy as np
from benchmarks.protocol import report
from benchmarks.replay import BATCH, HIDDEN, asked, limit, speed, transitions
from d3rlpy.models import VectorEncoderFactory

NETS = VectorEncoderFactory([HIDDEN, HIDDEN], activation="relu")


def algorithm(name: str) -> d3rlpy.algos.QLearningAlgoBase:
    """TD3+BC or IQL with its own defaults on networks of the agreed size."""
    if name == "td3_bc":
        config = d3rlpy.algos.TD3PlusBCConfig(batch_size=BATCH, actor_encoder_factory=NETS, critic_encoder_factory=NETS)
    else:
        config = d3rlpy.algos.IQLConfig(
            batch_size=BATCH, actor_encoder_factory=NETS, critic_encoder_factory=NETS, value_encoder_factory=NETS
        )
    return config.create(device="cpu:0")


def main() -> None:
    flags = asked()
    flags.add_argument("algorithm", choices=["td3_bc", "iql"])
    args = flags.parse_args()
    limit(args.threads)
    d3rlpy.seed(args.seed)
    data = transitions(args.seed)
    never = np.zeros_like(data["end"])
    dataset = d3rlpy.dataset.MDPDataset(data["obs"], data["action"], data["reward"], never, data["end"])
    learner = algorithm(args.algorithm)
    learner.build_with_dataset(dataset)

    def update(n: int) -> None:
        for _ in range(n):
            learner.update(dataset.sample_transition_batch(BATCH))

    found = speed(args.algorithm, update, args.seconds)
    report(
        "d3rlpy",
        ("d3rlpy", "torch", "numpy"),
        what=args.algorithm,
        seed=args.seed,
        threads=args.threads,
        settings="defaults",
        **found,
    )


if __name__ == "__main__":
    main()
