"""`partita train`: from the words of a command line to a finished run."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from partita.core import ranks
from partita.core.errors import UserError
from partita.core.words import switch, take
from partita.lab.config import Config
from partita.lab.flags import parse
from partita.lab.progress import Notes, Progress
from partita.lab.train import ALONE, Result, free_folder, launch


def train(argv: list[str]) -> None:
    """Train, or resume, and say where everything is."""
    ranks.start()
    words = list(argv)
    resume = take(words, "--resume")
    if resume is not None:
        track, quiet, shard = take(words, "--track"), switch(words, "--quiet"), switch(words, "--shard")
        if words:
            raise UserError(f"--resume {resume}: continues the run as it was; remove {words[0]}, or start a new run")
        folder = Path(resume)
        if not (folder / "config.json").is_file():
            raise UserError(f"--resume {resume}: not a run (it has no config.json)")
        config = Config.read(folder / "config.json")
        if shard:
            if ranks.world() == 1:
                raise UserError(ALONE)
            config = replace(config, settings=replace(config.settings, shard=True))
        finish(launch(config, folder, True, watchers(quiet, (track,) if track else ())))
        return
    config, options = parse(words)
    if options["smoke"]:
        smoke(config)
        return
    folder = Path(options["out"] or ranks.agreed(str(free_folder(config)) if ranks.rank() == 0 else None))
    finish(launch(config, folder, False, watchers(options["quiet"], options["track"])))


def watchers(quiet: bool, track: tuple[str, ...]) -> tuple[Any, ...]:
    """Who follows the run."""
    out: list[Any] = [Notes()] if quiet else [Progress()]
    if track:
        from partita.lab.track import tracker

        out += [tracker(name) for name in track]
    return tuple(out)


def finish(result: Result) -> None:
    """Write the report and say where things are; of several ranks the first one, for which the others wait."""
    if ranks.rank() == 0:
        tell(result)
    ranks.wait()  # whoever left early would take the group down with it


def tell(result: Result) -> None:
    """Write the report and say where things are."""
    from partita.lab.report import write

    page = write([result.folder], result.folder / "report.html")
    if result.finished:
        print(f"{result.folder}: finished; report in {page}")
    else:
        print(f"{result.folder}: stopped; continue with: partita train --resume {result.folder}")


def smoke(config: Config) -> None:
    """Two small steps in a temporary folder, to see that recipe, task and policy fit together."""
    recipe: Any = config.recipe
    small = recipe.small()
    settings = replace(config.settings, eval_size=min(config.settings.eval_size, 4), save_every=1)
    with tempfile.TemporaryDirectory() as folder:
        result = launch(replace(config, recipe=small, settings=settings), Path(folder) / "run", False, (Notes(),))
    print(f"{config.name} on {config.task.part_name()}: smoke test passed ({len(result.metrics)} steps)")
