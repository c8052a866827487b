"""What the generated worlds share."""

import torch

from partita.tasks.worlds.calculator import Calculator
from partita.tasks.worlds.generated import Dice
from partita.tasks.worlds.keydoor import Keydoor
from partita.tasks.worlds.lookup import Lookup
from partita.tasks.worlds.reference import reference_scores


def test_dice_are_fair_and_come_from_their_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    dice = Dice(torch.Generator().manual_seed(1))
    counts = [0] * 6
    for _ in range(6000):
        counts[dice.between(1, 6) - 1] += 1
    assert all(abs(count - 1000) < 5 * 29 for count in counts)  # five standard deviations, sqrt(6000 * 5/36) = 29
    firsts = [dice.shuffled("abc")[0] for _ in range(3000)]
    assert all(abs(firsts.count(letter) - 1000) < 5 * 26 for letter in "abc")
    assert torch.equal(torch.get_rng_state(), before)


def test_prompts_end_where_the_policy_acts_and_levels_are_what_was_asked():
    for world in (Keydoor(), Lookup(), Calculator()):
        for level in (*world.levels, world.hard):
            problems = world.but(level=level).problems(5, torch.Generator().manual_seed(0))
            assert {p.level for p in problems} == {level}
            assert all(p.prompt.endswith(">") and p.prompt.isprintable() is ("\n" not in p.prompt) for p in problems)
            assert all(world.open(p).observation == "" for p in problems)
        assert {p.level for p in world.problems(60, torch.Generator().manual_seed(0))} == set(world.levels)


def test_transcripts_stop_at_max_turns():
    world = Lookup(level=1, max_turns=2)
    problem = world.problems(1, torch.Generator().manual_seed(0))[0]
    written = world.transcript(problem, ["get aa.x\n"] * 5)
    assert (len(written.spans), written.done, written.score) == (2, False, 0.0)
    assert written.text.endswith(">")


def test_reference_scores_cover_every_level(capsys):
    table = reference_scores(Lookup(), n=20)
    assert list(table) == [1, 2, 3, 4]
    assert all(row["expert"] == 1.0 and row["random"] < 0.5 for row in table.values())
    assert [row["turns"] for row in table.values()] == [2.0, 3.0, 4.0, 6.0]
    assert len(capsys.readouterr().out.splitlines()) == 5
