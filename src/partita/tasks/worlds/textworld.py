"""TextWorld: interactive fiction made from a seed, played by typing commands."""

from __future__ import annotations

import os
import random
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from partita.core.errors import UserError
from partita.core.task import Problem
from partita.tasks.worlds import base
from partita.tasks.worlds.base import MALFORMED, MARKER, Episode, Reply
from partita.tasks.worlds.extras import needed
from partita.tasks.worlds.outside import Outside, scripted

FOLDER = "PARTITA_TEXTWORLD_GAMES"  # environment variable: where this process and its workers keep the game files
TYPED = re.compile(r"[a-z0-9' -]{1,100}", re.IGNORECASE)
BARRED = re.compile(
    r"\b(save|restore|restart|quit|q|script|transcript|recording|replay|verify|version|undo|again|g|oops|o|notify|"
    r"nouns|pronouns|brief|normal|superbrief|short|verbose|long|then|tw-\S*)\b",
    re.IGNORECASE,
)  # commands to the interpreter rather than to the game (some write files), and two commands in one line
STATUS = re.compile(r">? {20,}[^\n]*$")  # the interpreter's status line


@dataclass(frozen=True)
class Textworld(Outside):
    """A game of TextWorld (package `textworld`): rooms, things, containers, doors and keys, and a quest to carry out.

    nb_rooms, nb_objects, quest_length: the package's settings of a game: rooms, things (more if the quest needs them)
    and commands that the quest takes. games: how many games there are, number 0 to games - 1 (0: a new game for every
    problem, which takes a second or two to make). admissible: list the commands that the game would carry out.

    The prompt is the objective and the room; an action is a line; an observation is the game's answer:

        First of all, you could, like, open the box in the studio. ...
        -= Studio =-
        You're now in the studio. You see a closed box. ...
        You can: examine box, go north, look, open box>open box
        You open the box, revealing a desktop computer.
        You can: close box, examine box, ..., take desktop computer from box>

    A command that is not admissible is no valid action unless it does something (as `n` for `go north` does); the
    game answers all the same. Commands to the interpreter (save, quit, undo ...), two commands in a line, and signs
    other than letters, digits, `'` and `-` do not reach it and are answered by `?`. Reward and score 1 for a game that
    is won, else 0; parts: "turns". The state is the objective and the game's facts. Expert: the game's walkthrough.

    Texts run to hundreds of characters a turn: too long for the shipped character models. Game files live in a
    temporary folder as long as our process. Needs `pip install 'partita[worlds]'`; runs in processes of its own
    (`partita.tasks.worlds.outside`). Source: Côté et al., "TextWorld: A Learning Environment for Text-based Games"
    (2018), arXiv:1806.11532. Raises UserError on a missing package and on settings that no game can be made with.
    """

    seconds: float = 60.0
    nb_rooms: int = 2
    nb_objects: int = 4
    quest_length: int = 3
    games: int = 50
    admissible: bool = True

    max_tokens: ClassVar[int] = 64
    flaws: ClassVar[tuple[str, ...]] = ("random", "skip")
    abstract: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("nb_rooms", 1), ("nb_objects", 1), ("quest_length", 1), ("games", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}: {getattr(self, name)} is too few; set {least} or more")
        if self.max_turns < self.quest_length:
            raise UserError(
                f"max_turns: {self.max_turns} is too few, the quest takes {self.quest_length} commands; "
                f"set {self.quest_length} or more"
            )
        if base.inside:
            import textworld  # noqa: F401  (takes seconds: before any time limit runs)

    def _hosts(self) -> Any:
        needed("textworld", "textworld")
        folder()
        return super()._hosts()

    def _problem(self, seed: int) -> Problem:
        """Objective and first room of the game of a seed."""
        number = seed % self.games if self.games else seed
        episode = self._start(number)
        episode.close()
        return Problem(episode.opening, {"game": number}, f"quest{self.quest_length}")

    def open(self, problem: Problem) -> Game:
        """A new episode of the problem's game."""
        episode = self._start(problem.data["game"])
        if episode.opening != problem.prompt:
            episode.close()
            raise UserError(
                f"game {problem.data['game']} of textworld begins otherwise than its problem does; "
                "use the package's version that made the problem"
            )
        return episode

    def _start(self, number: int) -> Game:
        import textworld

        asked = textworld.EnvInfos(
            admissible_commands=True, facts=True, won=True, lost=True, description=True, objective=True,
            extras=["walkthrough"],
        )  # fmt: skip
        return Game(textworld.start(str(self._file(number)), asked), self.admissible)

    def _file(self, number: int) -> Path:
        """The compiled game, made if no worker has made it yet."""
        import textworld
        from textworld.generator import compile_game, make_game

        final = folder() / f"{self.nb_rooms}-{self.nb_objects}-{self.quest_length}-{number}"
        if not final.exists():
            draft = Path(tempfile.mkdtemp(dir=folder()))
            options = textworld.GameOptions()
            options.seeds, options.path = number, str(draft / "game.z8")
            options.nb_rooms, options.nb_objects, options.quest_length = (
                self.nb_rooms,
                self.nb_objects,
                self.quest_length,
            )
            try:
                compile_game(make_game(options), options)
            except Exception as error:
                shutil.rmtree(draft, ignore_errors=True)
                raise UserError(
                    f"quest_length: TextWorld made no game {number} of {self.quest_length} commands with "
                    f"{self.nb_rooms} rooms and {self.nb_objects} things ({type(error).__name__}); "
                    "choose a shorter quest or more rooms"
                ) from error
            try:
                draft.rename(final)
            except OSError:  # another worker was faster
                shutil.rmtree(draft, ignore_errors=True)
        return final / "game.z8"

    def _script(self, problem: Problem, dice: random.Random, flaw: str | None) -> list[str]:
        """The game's walkthrough (flaw None), or random: any admissible command; skip: leaves out one command of it."""
        episode = self.open(problem)
        if flaw == "random":
            return scripted(self, episode, lambda: f"{dice.choice(episode.commands)}\n")
        episode.close()
        steps = list(episode.walkthrough)
        if flaw == "skip":
            steps[dice.randrange(len(steps))] = "look"
        return [f"{step}\n" for step in steps]


class Game(Episode):
    """An episode of `Textworld`."""

    def __init__(self, env: Any, admissible: bool) -> None:
        self.env = env
        self.admissible = admissible
        self.turns = 0
        self.done = False
        found = env.reset()
        self.objective = " ".join(found.objective.split())
        self.walkthrough: list[str] = found["extra.walkthrough"]
        self._take(found)
        self.opening = self._shown(f"{self.objective}\n{_neat(found.description)}")

    def _take(self, found: Any) -> None:
        self.won = bool(found.won)
        self.commands: list[str] = sorted(found.admissible_commands)
        self.state = f"{self.objective}|{';'.join(sorted(map(str, found.facts)))}"

    def _shown(self, text: str) -> str:
        """A text with the list of commands, and the marker."""
        return f"{text}\nYou can: {', '.join(self.commands)}{MARKER}" if self.admissible else f"{text}\n{MARKER}"

    def act(self, action: str) -> Reply:
        """One command."""
        if self.done:
            return self._reply("", 0.0)
        command = " ".join(action.split())
        known, before = command.lower() in map(str.lower, self.commands), self.state
        if not (known or (TYPED.fullmatch(command) and not BARRED.search(command))):
            return self._reply(self._shown(MALFORMED), 0.0, valid=False)
        self.turns += 1
        found, _, done = self.env.step(command)
        self._take(found)
        self.done = bool(done or found.won or found.lost)
        if self.done:
            self.close()
        return self._reply(self._shown(_neat(found.feedback)), float(self.won), known or self.state != before)

    def _reply(self, text: str, reward: float, valid: bool = True) -> Reply:
        return Reply("" if self.done else text, reward, self.done, valid, float(self.won), {"turns": float(self.turns)})

    def close(self) -> None:
        """Close the interpreter."""
        self.env.close()


def folder() -> Path:
    """Where the game files of this process and its workers are, removed when the process that made it ends."""
    global _owned
    held = os.environ.get(FOLDER, "")
    if not os.path.isdir(held):
        _owned = tempfile.TemporaryDirectory(prefix="partita-textworld-")
        os.environ[FOLDER] = held = _owned.name
    return Path(held)


_owned: tempfile.TemporaryDirectory[str] | None = None


def _neat(text: str) -> str:
    """The game's text without status line, empty lines and spaces at the ends of lines."""
    lines = (line.strip() for line in STATUS.sub("", text).split("\n"))
    return "\n".join(line for line in lines if line and line != MARKER)
