"""SAC in JAX alone, as lean as we could write it: updates a second.

    python -m benchmarks.peers.jax_sac --threads 1               # a compiled call for every update
    python -m benchmarks.peers.jax_sac --threads 1 --each 64     # 64 in one compiled call

The transitions are arrays of JAX; drawing a batch, the gradients, Adam and the move of the target are one compiled
function that reuses the memory of the state it is given. An update is a step of both critics, the actor, the
temperature and the target. Compilation is over before time counts. Prints one JSON line.
"""

from __future__ import annotations

from typing import Any

import jax
from benchmarks.protocol import report
from benchmarks.replay import (
    ACTION,
    BATCH,
    DISCOUNT,
    HIDDEN,
    OBS,
    RATE,
    TAU,
    TRANSITIONS,
    asked,
    limit,
    speed,
    transitions,
)
from jax import numpy as jnp

LOG_STD = (-20.0, 2.0)
Tree = Any


def network(key: jax.Array, inputs: int, outputs: int) -> list[tuple[jax.Array, jax.Array]]:
    """Weights and biases of two hidden layers and an output."""
    sizes = (inputs, HIDDEN, HIDDEN, outputs)
    keys = jax.random.split(key, 3)
    return [
        (jax.random.normal(k, (i, o)) / i**0.5, jnp.zeros(o)) for k, i, o in zip(keys, sizes, sizes[1:], strict=False)
    ]


def forward(layers: Tree, x: jax.Array) -> jax.Array:
    for weight, bias in layers[:-1]:
        x = jax.nn.relu(x @ weight + bias)
    weight, bias = layers[-1]
    return x @ weight + bias


def least(critics: Tree, obs: jax.Array, action: jax.Array) -> jax.Array:
    """The smaller value of the two critics, (B,)."""
    x = jnp.concatenate([obs, action], 1)
    return jnp.minimum(*(forward(c, x)[:, 0] for c in critics))


def act(actor: Tree, obs: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Squashed Gaussian actions (B, A) and their log-probabilities (B,)."""
    mean, log_std = jnp.split(forward(actor, obs), 2, axis=-1)
    log_std = jnp.clip(log_std, *LOG_STD)
    noise = jax.random.normal(key, mean.shape)
    raw = mean + jnp.exp(log_std) * noise
    density = -0.5 * noise**2 - log_std - 0.5 * jnp.log(2 * jnp.pi)
    squash = 2 * (jnp.log(2.0) - raw - jax.nn.softplus(-2 * raw))
    return jnp.tanh(raw), (density - squash).sum(-1)


def adam(parameters: Tree, gradients: Tree, moments: Tree, count: jax.Array) -> tuple[Tree, Tree]:
    """One step of Adam; moments: (first, second), like the parameters."""
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments[0], gradients)
    second = jax.tree.map(lambda m, g: 0.999 * m + 0.001 * g * g, moments[1], gradients)
    rate, scale = RATE / (1 - 0.9**count), 1 / (1 - 0.999**count)
    moved = jax.tree.map(lambda p, m, s: p - rate * m / (jnp.sqrt(s * scale) + 1e-8), parameters, first, second)
    return moved, (first, second)


def start(seed: int) -> Tree:
    """All that changes from update to update."""
    key, *keys = jax.random.split(jax.random.PRNGKey(seed), 4)
    networks = {
        "actor": network(keys[0], OBS, 2 * ACTION),
        "critics": [network(k, OBS + ACTION, 1) for k in keys[1:]],
        "log_alpha": jnp.zeros(()),
    }
    moments = {name: tuple(jax.tree.map(jnp.zeros_like, (n, n))) for name, n in networks.items()}
    target = jax.tree.map(jnp.copy, networks["critics"])
    return {"networks": networks, "moments": moments, "target": target, "key": key, "count": jnp.zeros(())}


def update(state: Tree, data: dict[str, jax.Array]) -> Tree:
    key, draw, now, later = jax.random.split(state["key"], 4)
    drawn = jax.random.randint(draw, (BATCH,), 0, TRANSITIONS)
    obs, next_obs, action, reward = (data[k][drawn] for k in ("obs", "next_obs", "action", "reward"))
    networks, moments, count = dict(state["networks"]), dict(state["moments"]), state["count"] + 1
    alpha = jnp.exp(networks["log_alpha"])

    following, logp = act(networks["actor"], next_obs, later)
    best = least(state["target"], next_obs, following) - alpha * logp
    wanted = reward + DISCOUNT * best  # episodes end by their time limit alone
    given = jnp.concatenate([obs, action], 1)

    def of_critics(critics: Tree) -> jax.Array:
        return sum(0.5 * jnp.square(forward(c, given)[:, 0] - wanted).mean() for c in critics)

    def of_actor(actor: Tree) -> tuple[jax.Array, jax.Array]:
        chosen, logp = act(actor, obs, now)
        return (alpha * logp - least(networks["critics"], obs, chosen)).mean(), logp.mean()

    def step(name: str, gradients: Tree) -> None:
        networks[name], moments[name] = adam(networks[name], gradients, moments[name], count)

    step("critics", jax.grad(of_critics)(networks["critics"]))
    gradients, logp = jax.grad(of_actor, has_aux=True)(networks["actor"])
    step("actor", gradients)
    step("log_alpha", -(logp - ACTION))
    target = jax.tree.map(lambda t, c: t + TAU * (c - t), state["target"], networks["critics"])
    return {"networks": networks, "moments": moments, "target": target, "key": key, "count": count}


def main() -> None:
    flags = asked()
    flags.add_argument("--each", type=int, default=1, help="updates in a compiled call")
    args = flags.parse_args()
    limit(args.threads)
    data = {k: jnp.asarray(v) for k, v in transitions(args.seed).items()}
    state = start(args.seed)

    def several(state: Tree, data: dict[str, jax.Array]) -> Tree:
        return jax.lax.fori_loop(0, args.each, lambda _, s: update(s, data), state)

    compiled = jax.jit(update if args.each == 1 else several, donate_argnums=0)

    def run(n: int) -> None:
        nonlocal state
        for _ in range(n // args.each):
            state = compiled(state, data)
        jax.block_until_ready(state)

    found = speed("sac", run, args.seconds)
    if not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state["networks"])):
        raise SystemExit("not finite")
    settings = f"{args.each} updates a call"
    versions = ("jax", "jaxlib", "numpy")
    report("jax", versions, what="sac", seed=args.seed, threads=args.threads, settings=settings, **found)


if __name__ == "__main__":
    main()
