"""Players behind an endpoint for tests: an expert who knows the problems by heart, and words for the command line."""

import json

from partita.lab.endpoint_command import main
from partita.loops.run import Generators
from partita.policies.endpoint import Endpoint
from speaking import said


def drawn(task, size, seed=0):
    return task.problems(size, Generators(seed)["evaluation/problems"])


def expert(task, problem):
    return task.demonstrate(problem, Generators(0)["expert"])


def by_heart(task, size, seed=0, spoil=lambda i, turn, action: action):
    """Replies of an expert in chat; `spoil(problem, turn, action)` may say something else, or give a whole reply."""
    known = {p.prompt: (i, expert(task, p)) for i, p in enumerate(drawn(task, size, seed))}
    assert len(known) == size  # the opening tells which problem it is

    def reply(heard):
        talk = heard.body["messages"]
        i, actions = known[talk[1]["content"]]
        turn = sum(m["role"] == "assistant" for m in talk)
        found = spoil(i, turn, actions[turn] if turn < len(actions) else "n")
        return found if isinstance(found, tuple) else said(found)

    return reply


def words(url, *more, model="tiny", backoff=0.001, timeout=5, **flags):
    flags = {"endpoint": url, "model": model, "backoff": backoff, "timeout": timeout, **flags}
    return [w for name, value in flags.items() for w in (f"--{name.replace('_', '-')}", str(value))] + list(more)


def found(capsys, argv):
    main([*argv, "--json"])
    return json.loads(capsys.readouterr().out)


def at(url, **settings):
    return Endpoint(**{"url": url, "model": "tiny", "backoff": 0.001, "timeout": 5.0, **settings})
