#!/bin/sh
# The main job, end to end: GRPO, GRPO with one slot changed, PPO; then one report that compares them.
set -eu
out="runs/demo-$(date +%Y%m%d-%H%M%S)"

run() {
  echo
  echo "\$ partita $*"
  partita "$@"
}

run train grpo --task arithmetic --steps 100 --out "$out/grpo"
run train grpo --task arithmetic --steps 100 --credit leave_one_out --out "$out/grpo-leave-one-out"
run train ppo --task cartpole --until 475 --steps 300 --out "$out/ppo"
run report "$out/grpo" "$out/grpo-leave-one-out" "$out/ppo" --out "$out/report.html"
