"""The peers' own environments: one virtual environment each under `.bench/`, made once.

    python benchmarks/environments.py            # all of them
    python benchmarks/environments.py sb3 trl    # some of them

An environment is finished when it holds a `ready.txt` that lists what it was made from; asking again does nothing
until that list changes.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".bench"

# Our own environment pins the same torch, so that both sides run the same kernels.
TORCH = "torch==2.13.0"

REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "sb3": (TORCH, "stable-baselines3==2.9.2", "gymnasium[mujoco]==1.4.0", "mujoco==4.0.0"),
    "sbx": (TORCH, "sbx-rl==0.28.0", "jax[cpu]==0.10.2"),
    "d3rlpy": (TORCH, "d3rlpy==2.8.1"),
    "rejax": ("rejax==0.1.3", "jax[cpu]", "gymnax==0.0.9"),
    "trl": (TORCH, "trl==1.16.0", "transformers==5.23.0", "tokenizers", "scipy", "pytest"),
    "verl": (
        TORCH,
        "transformers==5.9.0",
        "tensordict==0.10.0",
        "ray==2.60.0",
        "omegaconf==2.3.1",
        "hydra-core==1.3.8",
        "codetiming==1.4.0",
        "torchdata==0.11.0",
        "datasets==5.2.0",
        "pillow",
        "uvicorn",
        "fastapi",
        "cachetools",
        "accelerate==1.15.0",
        "peft==0.21.2",
        "TransferQueue==0.1.10",
        "scipy",
        "pytest",
    ),
}

# Installed without what they ask for: of verl only functions are called, and they need no more than the list above.
ALONE: dict[str, tuple[str, ...]] = {"verl": ("verl==0.9.1",)}


def python(name: str) -> Path:
    """The interpreter of environment `name`; raises FileNotFoundError with the fix if it was not made."""
    path = HOME / name / "bin" / "python"
    if not path.exists() or not (HOME / name / "ready.txt").exists():
        raise FileNotFoundError(f"peer environment {name!r} is missing; run python benchmarks/environments.py {name}")
    return path


def make(name: str) -> None:
    """Create environment `name` and install its peer, unless that has been done already."""
    alone = ALONE.get(name, ())
    folder, wanted = HOME / name, "\n".join((*REQUIREMENTS[name], *alone)) + "\n"
    ready = folder / "ready.txt"
    if ready.exists() and ready.read_text() == wanted:
        print(f"{name}: ready")
        return
    print(f"{name}: installing {' '.join(wanted.split())}", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--quiet"]
    subprocess.run([*pip, *REQUIREMENTS[name]], check=True)
    if alone:
        subprocess.run([*pip, "--no-deps", *alone], check=True)
    ready.write_text(wanted)
    print(f"{name}: ready", flush=True)


def main(names: list[str]) -> int:
    unknown = [n for n in names if n not in REQUIREMENTS]
    if unknown:
        print(f"unknown environment {unknown[0]!r}; expected one of {', '.join(REQUIREMENTS)}", file=sys.stderr)
        return 2
    for name in names or list(REQUIREMENTS):
        make(name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
