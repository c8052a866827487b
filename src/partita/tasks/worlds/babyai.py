"""BabyAI and MiniGrid in words: an agent with a mission in a grid world of which it sees a part."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from partita.core.errors import UserError, nearest
from partita.core.task import Problem
from partita.tasks.worlds import base
from partita.tasks.worlds.base import MALFORMED, MARKER, Episode, Reply
from partita.tasks.worlds.extras import needed
from partita.tasks.worlds.outside import Outside, scripted

ACTIONS = "lrfpdtx"  # left, right, forward, pick up, drop, toggle, done: in the order of the package's numbers
PLAIN = ("wall", "floor", "unseen", "empty")  # told otherwise, or not at all
MEANT = ("desc", "desc_move", "desc_fixed")  # where a mission keeps the descriptions of things
UNCOLOURED = ("goal", "lava")
DOORS = ("open", "closed", "locked")  # in the order of the package's numbers


@dataclass(frozen=True)
class Babyai(Outside):
    """A level of BabyAI or MiniGrid (package `minigrid`), named by its Gymnasium id, with what is seen put into words.

    Actions: `l` turn left, `r` turn right, `f` forward, `p` pick up, `d` drop, `t` toggle (open, unlock), `x` done.
    The prompt is the mission; an observation tells what the agent sees, nearest first, by steps forward (`f`) and to
    the left (`l`) or right (`r`), walls straight ahead and straight to the sides, and what it carries (`have red key`):

        go to the blue key
        wall 3f2l2r, purple ball 1f1r, blue key 2f1l>f
        wall 2f2l2r, purple ball 1r, blue key 1f1l>f
        wall 1f2l2r, blue key 1l>l      and now it faces the key, which is what "go to" asks for

    It sees 7x7 cells before it, on most levels not through walls. Other text is answered by `?` and what is seen.

    Reward and score 1 for a mission fulfilled (the package's own reward falls with time; turns are limited here), else
    0; the level's own limit of steps and its failures end an episode too. Parts: "steps". The state is the whole grid,
    the agent and what the mission counts (not the random numbers of levels whose obstacles move). Missions need memory
    where what matters is out of sight. A problem is a seed. Expert: the package's BabyAI bot, for BabyAI's ids; set
    `max_turns` to what its longest plans take (6 at the default id; about 20 for BabyAI-GoToRedBallGrey-v0).

    Needs `pip install 'partita[worlds]'`; runs in processes of its own (`partita.tasks.worlds.outside`). Source:
    Chevalier-Boisvert et al., "BabyAI" (2019), arXiv:1810.08272, and "Minigrid & Miniworld" (2023), arXiv:2306.13831.
    Raises UserError on an unknown id, a missing package, or an expert asked for where there is none.
    """

    max_turns: int = 10
    id: str = "BabyAI-GoToLocalS5N2-v0"

    max_tokens: ClassVar[int] = 4
    flaws: ClassVar[tuple[str, ...]] = ("random", "forward")
    abstract: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.id.startswith(("BabyAI-", "MiniGrid-")):
            raise UserError(f"id: {self.id!r} is no BabyAI or MiniGrid level; choose one such as {Babyai.id}")
        if base.inside:
            make(self.id).close()  # imports the package before any time limit runs

    def _hosts(self) -> Any:
        needed("minigrid", "babyai")
        return super()._hosts()

    def _problem(self, seed: int) -> Problem:
        """The mission of a seed and what is seen first."""
        episode = Errand(make(self.id), seed)
        episode.close()
        return Problem(episode.opening, {"seed": seed}, self.id)

    def open(self, problem: Problem) -> Errand:
        """A new episode of the problem's seed."""
        episode = Errand(make(self.id), problem.data["seed"])
        if episode.opening != problem.prompt:
            episode.close()
            raise UserError(
                f"seed {problem.data['seed']} of {self.id} begins otherwise than its problem does; "
                "use the package's version and the id that made the problem"
            )
        return episode

    def _script(self, problem: Problem, dice: random.Random, flaw: str | None) -> list[str]:
        """The bot that comes with BabyAI (flaw None), or random: any action; forward: any of `l`, `r` and `f`."""
        episode = self.open(problem)
        if flaw is None:
            return scripted(self, episode, lambda: f"{episode.advice()}\n")
        return scripted(self, episode, lambda: f"{dice.choice(ACTIONS[:3] if flaw == 'forward' else ACTIONS)}\n")


class Errand(Episode):
    """An episode of `Babyai`."""

    def __init__(self, env: Any, seed: int) -> None:
        found, _ = env.reset(seed=seed)
        self.env = env
        self.grid = env.unwrapped
        self.picture = found["image"]
        self.mission = " ".join(found["mission"].split())
        self.steps = 0
        self.score = 0.0
        self.done = False
        self._bot: Any = None
        self._last: int | None = None
        self.opening = f"{self.mission}\n{self.seen()}{MARKER}"

    @property
    def state(self) -> str:  # type: ignore[override]
        """Mission, every cell that is not empty, the agent, what it carries, and what of the mission is done."""
        grid, missions = self.grid, list(_missions(getattr(self.grid, "instrs", None)))
        wanted = [getattr(m, name) for m in missions for name in MEANT if hasattr(m, name)]
        cells, walls = [], 0
        for k, thing in enumerate(grid.grid.grid):
            if thing is not None and thing.type == "wall":
                walls |= 1 << k
            elif thing is not None:
                cells.append(f"{k % grid.grid.width},{k // grid.grid.width} {_kept(thing, wanted)}")
        places = [sorted((int(x), int(y)) for x, y in w.obj_poss) for w in wanted]
        flags = [(getattr(m, "a_done", False), getattr(m, "b_done", False)) for m in missions]
        held = "" if grid.carrying is None else _kept(grid.carrying, wanted)
        x, y = grid.agent_pos
        return f"{self.mission}|{walls:x}|{';'.join(cells)}|{x},{y} {grid.agent_dir}|{held}|{places}|{flags}"

    def seen(self) -> str:
        """What the agent sees and carries, in words; from the package's own picture of 7x7 cells."""
        from minigrid.core.constants import IDX_TO_COLOR, IDX_TO_OBJECT

        view = self.picture.tolist()  # [column][row] of (kind, colour, state); the agent is below the middle
        middle, last = len(view) // 2, len(view[0]) - 1
        kinds = [[IDX_TO_OBJECT[kind] for kind, _, _ in column] for column in view]
        walls, things = "", []
        for sign, di, dj in (("f", 0, -1), ("l", -1, 0), ("r", 1, 0)):
            i, j, far = middle + di, last + dj, 1
            while 0 <= i <= 2 * middle and j >= 0 and kinds[i][j] not in ("unseen", "wall"):
                i, j, far = i + di, j + dj, far + 1
            if 0 <= i <= 2 * middle and j >= 0 and kinds[i][j] == "wall":
                walls += f"{far}{sign}"
        for i, column in enumerate(view):
            for j, (_, colour, state) in enumerate(column):
                ahead, aside = last - j, i - middle
                if kinds[i][j] not in PLAIN and (ahead or aside):
                    name = _named(kinds[i][j], IDX_TO_COLOR[colour], state)
                    things.append((ahead + abs(aside), ahead, aside, name))
        under = self.grid.grid.get(*self.grid.agent_pos)
        if under is not None and under.type not in PLAIN:
            things.append((0, 0, 0, _told(under)))
        told = [f"wall {walls}"] if walls else []
        told += [f"{name} {_where(ahead, aside)}" for _, ahead, aside, name in sorted(things)]
        told += [f"have {_told(self.grid.carrying)}"] if self.grid.carrying is not None else []
        return ", ".join(told) or "nothing"

    def act(self, action: str) -> Reply:
        """One step of the level."""
        if self.done:
            return self._reply("", 0.0)
        command = action.strip()
        if len(command) != 1 or command not in ACTIONS:
            return self._reply(MALFORMED, 0.0, valid=False)
        self._last = ACTIONS.index(command)
        found, reward, terminated, truncated, _ = self.env.step(self._last)
        self.picture = found["image"]
        self.steps += 1
        self.done = bool(terminated or truncated)
        self.score = float(bool(terminated) and float(reward) > 0)
        return self._reply("", self.score)

    def _reply(self, sign: str, reward: float, valid: bool = True) -> Reply:
        shown = "" if self.done else f"{sign}{self.seen()}{MARKER}"
        return Reply(shown, reward, self.done, valid, self.score, {"steps": float(self.steps)})

    def advice(self) -> str:
        """What BabyAI's bot would do next; ask for it at every turn."""
        from minigrid.utils.baby_ai_bot import BabyAIBot

        name = self.env.spec.id
        if not hasattr(self.grid, "instrs"):
            raise UserError(f"id: {name} has no expert; choose a BabyAI level to demonstrate")
        try:
            self._bot = self._bot or BabyAIBot(self.grid)
            return ACTIONS[int(self._bot.replan(self._last))]
        except Exception as error:
            raise UserError(
                f"id: BabyAI's bot gave up on {name} ({type(error).__name__}); choose another level to demonstrate"
            ) from error

    def close(self) -> None:
        """Close the level."""
        self.env.close()


def make(name: str) -> Any:
    """The level, or a UserError that says what is wrong with its name."""
    needed("minigrid", "babyai")
    import gymnasium
    import minigrid  # noqa: F401  (registers its levels)

    try:
        return gymnasium.make(name, disable_env_checker=True)
    except gymnasium.error.UnregisteredEnv as error:
        known = [each for each in gymnasium.registry if each.startswith(("BabyAI-", "MiniGrid-"))]
        raise UserError(f"id: no level {name} is known; {nearest(name, known)}") from error


def _missions(mission: Any) -> Iterator[Any]:
    """A mission and the missions it is made of."""
    if mission is not None:
        yield mission
        yield from _missions(getattr(mission, "instr_a", None))
        yield from _missions(getattr(mission, "instr_b", None))


def _named(kind: str, colour: str, state: int) -> str:
    """A thing in the words of missions."""
    if kind == "door":
        return f"{DOORS[state]} {colour} door"
    return kind if kind in UNCOLOURED else f"{colour} {kind}"


def _told(thing: Any) -> str:
    state = 0
    if thing.type == "door":
        state = 2 if thing.is_locked else 0 if thing.is_open else 1
    return _named(thing.type, thing.color, state)


def _kept(thing: Any, wanted: list[Any]) -> str:
    """A thing, what is inside it, and which descriptions of the mission it is meant by."""
    inside = getattr(thing, "contains", None)
    meant = "".join(str(k) for k, each in enumerate(wanted) if any(thing is one for one in each.obj_set))
    return f"{_told(thing)}{meant and '*' + meant}{'' if inside is None else f'({_kept(inside, wanted)})'}"


def _where(ahead: int, aside: int) -> str:
    forward = f"{ahead}f" if ahead else ""
    return forward + (f"{-aside}l" if aside < 0 else f"{aside}r" if aside else "") or "here"
