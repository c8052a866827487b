"""The commands of the command line: how each is called, and who carries it out. They import what they need when run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from partita.core.collector import unswept
from partita.core.errors import UserError, nearest
from partita.core.words import no_flags, nothing_left, positional, switch, take, whole


def papers(argv: list[str]) -> None:
    """partita papers [--json] [--family F]: the works held here."""
    from partita.lab.catalogue import rows

    family = take(argv, "--family")
    as_json = switch(argv, "--json")
    nothing_left(argv, "papers")
    found = rows(family)
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    width = max((len(r["key"]) for r in found), default=0)
    for row in found:
        claim = row["claim"]
        verdict = "-" if claim is None else claim["verdict"] or "no evidence yet"
        print(f"{row['key']:{width}}  {row['family']:12} {row['kind']:10} {verdict:16} {row['title']}")
    print(f"{len(found)} works")


def show(argv: list[str]) -> None:
    """partita show KEY: summary, equations, what it changes, evidence."""
    from partita.lab.catalogue import show as lines

    key = positional(argv, "show", "KEY", 1)[0]
    print("\n".join(lines(key)))


def diff(argv: list[str]) -> None:
    """partita diff A B: two recipes slot by slot, fields that differ, equations of both."""
    from partita.lab.catalogue import diff as lines

    a, b = positional(argv, "diff", "A B", 2)
    print("\n".join(lines(a, b)))


def parts(argv: list[str]) -> None:
    """partita parts [SLOT]: every part that can fill a slot."""
    from partita.core import registry

    table = registry.index()["parts"]
    if argv and argv[0] not in table:
        raise UserError(f"parts {argv[0]}: no such slot; {nearest(argv[0], table)}")
    for slot, names in table.items():
        if argv and slot != argv[0]:
            continue
        print(slot)
        for name, entry in names.items():
            print(f"  {name:22} {entry['summary']}")


def train(argv: list[str]) -> None:
    """partita train RECIPE [flags]: train a policy by recipe; `partita train RECIPE --help` lists every flag.

    --task T            what to train on; --env gym:ID for Gymnasium, FILE.jsonl for a dataset
    --SLOT PART         another part for a slot: a name, a paper's key, or FILE.py:CLASS; then --SLOT.FIELD VALUE
    --config FILE       a run's own config.json reproduces it
    --resume DIR        continue a run that was stopped, to the same result
    --out DIR --seed N --steps N --lr X --until X --eval-every N --smoke --quiet
    """
    with unswept():
        from partita.lab.session import train as run

    run(argv)


def solve(argv: list[str]) -> None:
    """partita solve RECIPE [flags]: the answer to a known problem, computed; `partita solve RECIPE --help` lists all.

    --task T            the problem; --task.FIELD VALUE its fields. FILE.json: a finite process
    --solver PART       another solver; --solver.FIELD VALUE
    --discount X        of a finite process, then without end     --seed N (0)
    --sweeps N --every N                                          at most as many; sweeps between entries of curves
    --out FILE.json     numbers, curves and tables                --json: the same, printed
    """
    from partita.lab.solve import main as run

    run(argv)


def play(argv: list[str]) -> None:
    """partita play DIR [--episodes N] [--sampled] [--seed N] [--gif FILE] [--mp4 FILE]: evaluate a trained policy."""
    from partita.lab.play import play as run

    options = {name: take(argv, f"--{name}") for name in ("episodes", "seed", "gif", "mp4")}
    sampled = switch(argv, "--sampled")
    folder = positional(argv, "play", "DIR", 1)[0]
    run(
        Path(folder), whole("--episodes", options["episodes"], 100), whole("--seed", options["seed"], 0),
        not sampled, options["gif"], options["mp4"],
    )  # fmt: skip


def evaluate(argv: list[str]) -> None:
    """partita evaluate DIR_OR_MODEL [flags]: how a run's policy, or a model, does on a task, with 95% intervals.

    --task T            and its fields (--task.level 4); for a run, by default the task that it was trained on
    --metric M          success (greedy), pass@k, or cot_pass@k, which counts right answers with a right chain only
                        tool_calls for a problem, or tool_productivity, right answers for each call (greedy)
    --samples N (64)    responses to each problem   --k 1,8,64   --temperature X (1)
    --size N (200)      problems                    --seed N     --json

    --best-of 1,4,16    instead: the score of what a judge likes best among n responses, and KL = log n - (n - 1) / n
    --judge RUN[,RUN]   reward models, or ensembles of them; part:proxy, a part of what the verifier says (its score)
    --how H (wco)       what several models agree on: mean, wco (their least), uwo (mean - lambda var)
    --uncertainty X (0.5)   lambda                  --samples N: to choose among (the largest n)

    --endpoint URL      instead: a model behind an OpenAI-compatible address (http://localhost:8000/v1) plays a world
    --model NAME        as the server names it      --world W    a world or language task, --task.level 2 its fields
    --chat | --completions                          messages (the default), or plain text as a base model reads it
    --temperature X (0) --max-tokens N              --no-stop    without the world's stop strings
    --jobs N (8)        requests at a time          --timeout S (60)   --retries N (4)   --backoff S (0.5)
    --api-key-env VAR   holds the key (OPENAI_API_KEY)           --manual FILE: tells the model of the world
    --show N            episodes printed whole

    --ope fqe,is,wis,dr instead: what a run's policy would earn, from logged data alone, discounted
    --task DATA         logged data (also --task offline and its fields); by default those that the run learnt from
    --sampled           the policy draws its actions, as is, wis and dr need; otherwise it takes the likeliest
    --updates N (5000) of fqe's critics            --discount X (the recipe's)    --seed N     --json

    --certify           instead: what smoothing guarantees of a run's policy whatever is done to its observations
    --sigma X           of the noise (that of `--task noisy`)    --budgets 0,0.1,0.2,0.4,0.8   --episodes N   --alpha X
    --attack A (all)    greedy, steady or none: what the strongest leaves of it, and of the policy without noise
    --lowest X          the least return there can be, where that is not known     --seed N     --json
    """
    flags = {word.partition("=")[0] for word in argv}
    if "--ope" in flags:
        from partita.lab.ope import main as ope

        return ope(argv)
    if "--certify" in flags:
        from partita.lab.certify import main as certify

        return certify(argv)
    if "--best-of" in flags:
        from partita.lab.best_of import main as best_of

        return best_of(argv)
    from partita.lab.passk import main as run

    run(argv)


def report(argv: list[str]) -> None:
    """partita report [DIR ...] [--out FILE]: one self-contained HTML page of runs, or of a comparison.

    Without folders: a site of every work held, its parts and its evidence, in the folder --out (evidence-site).
    """
    from partita.lab.report import write

    out = take(argv, "--out")
    no_flags(argv, "report")
    if not argv:
        from partita.lab.site import write_site

        print(write_site(Path(out or "evidence-site")))
        return
    folders = [Path(a) for a in argv]
    if len(folders) == 1 and (folders[0] / "comparison.json").is_file():
        from partita.lab.compare_page import page
        from partita.lab.comparison import Comparison

        print(f"wrote {page(Comparison.read(folders[0]), target=Path(out) if out else None)}")
        return
    target = Path(out) if out else (folders[0] / "report.html" if len(folders) == 1 else Path("report.html"))
    print(f"wrote {write(folders, target)}")


def compare(argv: list[str]) -> None:
    """partita compare ARM ARM ... [flags]: recipes over the same seeds and problems; table, intervals and a page.

    ARM is a recipe, or in quotes a recipe with flags of its own: 'mine=grpo --credit leave_one_out'
    --task T and every other flag of `partita train` go to all arms
    --seeds N           seeds 0 to N-1 (8); also 3,5,9 or 100:108
    --budget B          steps=N, samples=N (responses, or steps of environments) or seconds=X for every run
    --metric M          success, return, or a metric of the steps: entropy, success:area, success:to=0.8
    --better higher|lower   --threshold X: of the training curve, for the time to reach it
    --jobs N            runs at a time (one for every core)
    --engine ray        on a Ray cluster; --address ADDRESS
    --out DIR           the same command with the same folder goes on where it stopped
    """
    carrier = engine(argv)
    domain = _domain(argv)
    from partita.lab.pool import Pool, server

    if isinstance(carrier, Pool) and domain is not None:
        server(domain == "language")  # loads while we do
    from partita.lab.compare import compare as run

    run(argv, carrier)


def _domain(argv: list[str]) -> str | None:
    """The domain of the task that the words name; None where a glance does not tell."""
    from partita.core import registry

    words = [word for text in argv for word in text.split("=", 1)]
    names = [name for flag, name in zip(words, words[1:], strict=False) if flag in ("--task", "--env")]
    entry = registry.index()["parts"]["task"].get(names[0]) if names else None
    return None if entry is None else entry["domains"][0]


def claim(argv: list[str]) -> None:
    """partita claim KEY [flags]: run a work's claim, treatment against control, and write evidence/KEY.json.

    --seeds N       other than the claim's own number    --quick: two seeds, nothing written
    --statement N   the N-th statement alone; what is held of the others stays
    --check         rerun two seeds and say whether the committed evidence is consistent
    --annotate      put the paper file's analysis into the evidence; runs nothing
    --all           every work that states a claim; --family F: of a family; --missing: that have no evidence
    --jobs N, --engine ray, --out DIR (runs/claims), --quiet
    """
    from partita.lab.claim import claim as run

    run(argv, engine(argv))


def figure(argv: list[str]) -> None:
    """partita figure KEY [--seeds N] [--out FILE.json]: measure a work's figures and write evidence/figures/KEY.json.

    The page of the work (`partita report`) draws them: a line is the mean over seeds, its band the least and the
    largest, the theory's lines are dashed.
    """
    from partita.lab.figure import main as run

    run(argv)


def tune(argv: list[str]) -> None:
    """partita tune RECIPE [flags]: search settings on tuning seeds (1000, 1001, ...), and record every trial.

    --search FLAG=V1,V2,...   or FLAG=LOW..HIGH:log; again for more. Default: lr, ten times lower to ten times higher
    --trials N (12)  --seeds N (2)  --metric M  --better higher|lower  --jobs N  --engine ray  --out DIR
    --task T and every other flag of `partita train`
    """
    from partita.lab.tune import tune as run

    run(argv, engine(argv))


def data(argv: list[str]) -> None:
    """partita data NAME [flags]: what data hold, and which of their rows are useless, and why.

    NAME            logged data of control: a folder, a .npz, .parquet or .hdf5 file, or a Minari dataset by its id
    --out FILE      a page with plots           --json
    --env NAME      the environment, where the data name none    --reference DATA   what SACo is relative to
    --bins N (100)  cells of each real number

    NAME            preferences: a .jsonl file or a dataset of the hub, as `--task comparisons --task.path` reads it
    --model M       count tokens by this model's tokenizer, and write messages by its chat template
    --task.FIELD V  the fields of the task: --task.max-prompt 512 --task.too-long cut_prompt_left --task.split test
    --strict        stop at the first useless row    --show N (1)   rows printed as the policy reads them    --json
    Exit code 1 where rows are left out, 0 otherwise, 2 for a file that cannot be used.
    """
    from partita.lab import dataset

    if dataset.meant(argv):
        return dataset.main(argv)
    from partita.lab.data import main as run

    run(argv)


def record(argv: list[str]) -> None:
    """partita record TASK --out DIR [flags]: episodes of an environment, the same bytes for the same words.

    TASK            a native environment or gym:ID; --task.FIELD VALUE its fields
    --behaviour B (expert)   random, medium, expert, replay, shares of them (random:0.95,expert:0.05), or a run's folder
    --steps N (10000)   at least, in whole episodes    --seed N    --sampled: draw the actions of a run's policy
    --format npz|parquet|minari|hdf5
    """
    from partita.lab.record import main as run

    run(argv)


def export(argv: list[str]) -> None:
    """partita export DIR [flags]: the language model that a run trained, as a folder that transformers and vLLM load.

    DIR             a run's folder, or a policy that was saved (DIR/policy)
    --to hf         whole weights with adapters added in, tokenizer, generation settings, a model card
    --out FOLDER    DIR/hf_CHECKPOINT by default    --force: replace a model exported before
    --checkpoint N  as of step N (the last)         --dtype D: float32, bfloat16 or float16 (the policy's own)
    """
    from partita.lab.export import main as run

    run(argv)


def serve(argv: list[str]) -> None:
    """partita serve DIR [--host H] [--port N]: a trained language model behind the OpenAI-compatible protocol.

    DIR             a run's folder, which is exported to DIR/hf_CHECKPOINT if it was not yet, or an exported model
    --host H        127.0.0.1: from this machine alone    --port N (8000)      pip install "partita[serve]"
    """
    from partita.lab.serve import main as run

    run(argv)


def doctor(argv: list[str]) -> None:
    """partita doctor DIR [--json]: what is going wrong in a run, with the numbers and the parts that address it.

    DIR         a run's folder, finished or not; or a folder of runs (a comparison), examined one by one
    --json      {"healthy": bool, "runs": [{"run", "steps", "findings", "passed", "skipped", ...}]}
    Exit code 1 where a problem was found, 0 otherwise (warnings included), 2 for a folder that is no run.
    """
    from partita.lab.doctor import main as run

    run(argv)


def engine(argv: list[str]) -> Any:
    """What carries out many runs: `--jobs N` processes here, or `--engine ray`."""
    name = take(argv, "--engine") or "processes"
    if name == "processes":
        from partita.lab.pool import Pool

        jobs = take(argv, "--jobs")
        return Pool(None if jobs is None else whole("--jobs", jobs, least=1))
    if name == "ray":
        from partita.engines.ray import Ray

        return Ray(take(argv, "--address"))
    raise UserError(f"--engine {name}: expected processes or ray")
