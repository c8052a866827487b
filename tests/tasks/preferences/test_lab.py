"""The preference laboratory: the gold reward by hand, and every phenomenon that it promises to reproduce."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.cli import main
from partita.core.errors import UserError
from partita.core.registry import recipe
from partita.core.task import Problem
from partita.estimators.best_of import best_of
from partita.lab.flags import parse
from partita.tasks.preferences.gold import Gold, base_writing, read, samples, weights
from partita.tasks.preferences.lab import Lab
from partita.tasks.preferences.proxy import WIDEST, chosen, features, fit, logistic

LETTERS = "abcdefghij"
GOLDEN = [-0.3139688409465042, 0.16424497935202548]
GOLDEN_LENGTH = 13.923978755688545
PROMPT = "rs:bcab="


@pytest.fixture(scope="module")
def deep():
    """Sixteen prompts with 256 responses each."""
    held = samples("deep")
    return read([p for p, texts in held.items() for _ in texts], [t for texts in held.values() for t in texts])


def every(lab: Lab):
    return [lab.given(lab.prompt(i)) for i in range(lab.size)]


def texts(lab: Lab):
    return [g.responses for g in every(lab)]


def symbol(c: str) -> int:
    return LETTERS.index(c.lower()) if c.lower() in LETTERS else 10


def by_hand(prompt: str, line: str, seed: int) -> float:
    """The peaked equation, character by character."""
    w = {name: value.tolist() for name, value in weights(seed).items()}
    ids = [symbol(c) for c in line]
    letters = [s for s in ids if s < 10]
    word = set(prompt.split(":")[1].strip("="))
    total = sum(w["a"][s] * math.log(1 + ids.count(s)) for s in set(ids))
    total += sum(w["B"][x][y] for x, y in itertools.pairwise(ids)) / math.sqrt(len(ids))
    total -= ((len(ids) - w["L"]) / 6) ** 2
    total -= 0.5 * sum(x == y < 10 for x, y in itertools.pairwise(ids))
    total += w["u"] * sum(c.isupper() for c in line) / len(line)
    total += w["o"][letters[0] if letters else 10]
    return total + w["q"] * sum(symbol(c) in ids for c in word) / len(word)


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("line", ["#cba", "abBc;#CBAa", "##", "zz;jj", "aAabbbcJIH" * 3])
def test_the_gold_reward_is_its_equation(line, seed):
    found = Gold(seed).plain(read([PROMPT], [line + "\nnot looked at"]))
    torch.testing.assert_close(found, torch.tensor([by_hand(PROMPT, line, seed)], dtype=torch.float64))


def test_the_gold_reward_has_mean_zero_and_deviation_one_over_the_base_model():
    wide = samples("wide")
    prompts, responses = [p for p, some in wide.items() for _ in some], [t for some in wide.values() for t in some]
    for gold in (Gold(1), Gold(2, "additive"), Gold(0, order=0.4), Gold(0, order=1.0)):
        value = gold(prompts, responses)
        assert abs(float(value.mean())) < 1e-9
        assert float(value.std()) == pytest.approx(1, abs=1e-9)


def test_the_gold_reward_is_what_it_was():
    found = [float(Gold(0)([PROMPT], [t])[0]) for t in ("#cba\n", "abBc;#CBAa\n")]
    assert found == pytest.approx(GOLDEN, abs=1e-6), "results before and after are not comparable"
    assert float(weights(0)["L"]) == pytest.approx(GOLDEN_LENGTH, abs=1e-9)


def test_an_additive_reward_is_a_sum_over_characters():
    gold = Gold(4, "additive")
    plain = gold.plain(read([PROMPT] * 3, ["ab#", "cd", "ab#cd"]))
    torch.testing.assert_close(plain[0] + plain[1], plain[2])
    assert plain[0] == pytest.approx(sum(float(weights(4)["a"][symbol(c)]) for c in "ab#"))


@given(st.text(max_size=80), st.text(max_size=20))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_string_has_a_reward(text, prompt):
    lab = Lab(non_markovian=0.3)
    outcome = lab.verify(Problem(prompt), text)
    assert math.isfinite(outcome.score)
    assert outcome.score == outcome.parts["gold"]
    assert lab.verify(Problem(prompt), text.partition("\n")[0][:64]) == outcome, "one line of 64 characters counts"


@given(st.lists(st.text("abcDEf#;", max_size=8), min_size=2, max_size=5), st.floats(0, 1), st.sampled_from([0, 0.5, 2]))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_preferences_are_complementary(responses, mixed, noise):
    lab = Lab(intransitive=mixed, noise=noise)
    p = lab.prefer(Problem(PROMPT), responses, torch.Generator())
    torch.testing.assert_close(p + p.T, torch.ones_like(p))
    assert bool((p.diagonal() == 0.5).all())


def test_without_cycles_preferences_are_bradley_terry_on_gold():
    lab, responses = Lab(noise=0.7, seed=2), ["#ab\n", "abc;#CBA\n", "jih\n"]
    value = lab.gold([PROMPT] * 3, responses).tolist()
    found = lab.prefer(Problem(PROMPT), responses, torch.Generator())
    for i, j in itertools.product(range(3), repeat=2):
        assert float(found[i, j]) == pytest.approx(1 / (1 + math.exp(-(value[i] - value[j]) / 0.7)))
    step = lab.but(noise=0.0).prefer(Problem(PROMPT), responses, torch.Generator())
    assert step.tolist() == [[0.5 + 0.5 * ((a > b) - (a < b)) for b in value] for a in value]


def test_labels_come_as_often_as_their_probabilities_say():
    lab = Lab(size=700, responses=6, noise=0.5)
    wins: list[float] = []
    chances: list[float] = []
    for i, found in enumerate(every(lab)):
        p = lab.truth(lab.prompt(i), found.responses)
        won = {(w, l) for w, l, _, _ in found.compared}
        assert len(won) == 15
        for a, b in itertools.combinations(range(6), 2):
            wins.append(float((a, b) in won))
            chances.append(float(p[a, b]))
    won, chance = torch.tensor(wins), torch.tensor(chances)
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        here = (chance >= low) & (chance < low + 0.2)
        spread = float((chance[here] * (1 - chance[here])).mean() / here.sum()) ** 0.5
        assert here.sum() > 300
        assert abs(float(won[here].mean() - chance[here].mean())) < 3.5 * spread


@pytest.mark.parametrize("flips", [0.0, 0.2, 1.0])
def test_so_many_labels_are_turned_round(flips):
    straight, turned = Lab(noise=0.0), Lab(noise=0.0, flips=flips)
    assert texts(straight) == texts(turned)
    against = [
        row[i] < row[j] for found in every(turned) for row in (found.scores,) for i, j, _, _ in found.compared
    ]  # fmt: skip
    assert sum(against) / len(against) == pytest.approx(flips, abs=4 * (0.25 / len(against)) ** 0.5)


def cycles(p: torch.Tensor) -> int:
    beats = p > 0.5 + 1e-12
    return sum(bool(beats[a, b] & beats[b, c] & beats[c, a]) for a, b, c in itertools.permutations(range(len(p)), 3))


def test_preferences_go_round_only_when_asked_to():
    responses = [f"#{a}{b}\n" for a in "abc" for b in LETTERS[:7]]
    problem = Problem(PROMPT)
    kinds = [o.parts["class"] for o in Lab().verify_all([problem] * len(responses), responses)]
    each = [kinds.count(k) for k in (0, 1, 2)]
    assert min(each) > 0
    assert cycles(Lab(intransitive=0.0).truth(problem, responses)) == 0
    assert cycles(Lab(intransitive=1.0).truth(problem, responses)) == 3 * math.prod(each)
    between = [cycles(Lab(intransitive=c).truth(problem, responses)) for c in (0.3, 0.7)]
    assert 0 < between[0] < between[1]
    p = Lab(intransitive=1.0, noise=0.5).truth(problem, responses)
    i, j = kinds.index(1.0), kinds.index(0.0)
    assert float(p[i, j]) == pytest.approx(1 / (1 + math.exp(-2))), "each class beats the one before it"


def test_order_decides_between_responses_with_the_same_neighbours():
    one, two = read([PROMPT] * 2, ["babeb\n", "bebab\n"]), ["babeb\n", "bebab\n"]
    assert torch.equal(one.pair[0], one.pair[1])
    assert torch.equal(features(one)[0], features(one)[1]), "no proxy sees a difference"
    assert one.order.tolist() == [1, -1]
    assert float(Lab().truth(Problem(PROMPT), two)[0, 1]) == 0.5
    assert float(Lab(non_markovian=0.5).truth(Problem(PROMPT), two)[0, 1]) > 0.9
    same = read([PROMPT] * 4, ["bcd", "aXcXa", "ebebi", "iba"]).order.tolist()
    assert same == [0, 0, 1, -1]


def test_the_data_are_what_the_seed_says():
    assert every(Lab()) == every(Lab())
    assert every(Lab()) != every(Lab(data_seed=1))
    assert texts(Lab()) == texts(Lab(noise=2.0, seed=5, flips=0.5)), "truth and noise leave the texts alone"
    assert all(len(set(some)) == 4 for some in texts(Lab()))
    lab, g = Lab(), torch.Generator().manual_seed(3)
    assert lab.prompt(5).prompt in samples("wide")
    fresh = lab.problems(20, g)
    assert fresh == lab.problems(20, torch.Generator().manual_seed(3))
    assert not {p.prompt for p in fresh} & set(samples("wide"))


def test_responses_come_from_where_they_should():
    wide = samples("wide")

    def own(lab):
        return [t in wide[lab.prompt(i).prompt] for i, some in enumerate(texts(lab)) for t in some]

    assert all(own(Lab()))
    assert sum(own(Lab(source="random"))) == 0
    mixed = own(Lab(source="mixture"))
    assert sum(mixed) / len(mixed) == pytest.approx(0.5, abs=0.05)
    assert all(text.endswith("\n") for some in texts(Lab(source="mixture")) for text in some)


@pytest.mark.parametrize("source", ["base", "random", "mixture"])
def test_data_cover_a_part_only(source):
    lab = Lab(coverage=0.5, source=source, size=100)
    found = {symbol(next((c for c in t if c.lower() in LETTERS), "#")) for some in texts(lab) for t in some}
    assert found <= set(lab.openings)
    best = weights(0)["o"].argsort(descending=True).tolist()
    assert list(lab.openings) == best[: len(lab.openings)], "what gold likes best"
    wide = [t for some in samples("wide").values() for t in some]
    opening = read([PROMPT] * len(wide), wide).opening
    mass = [float((opening == s).double().mean()) for s in lab.openings]
    assert sum(mass[:-1]) < 0.5 <= sum(mass)
    outcomes = lab.verify_all([Problem(PROMPT)] * len(wide), wide)
    assert sum(o.parts["covered"] for o in outcomes) / len(wide) == pytest.approx(sum(mass))
    assert Lab().verify(Problem(PROMPT), "").parts["covered"] == 1


def test_margins_are_the_judges_difference():
    for judge in ("gold", "proxy"):
        lab = Lab(margins=True, judge=judge, size=20)
        for i, found in enumerate(every(lab)):
            scores = lab.rewards([lab.prompt(i).prompt] * 4, found.responses).tolist()
            assert found.scores == pytest.approx(tuple(scores))
            assert all(m == pytest.approx(scores[a] - scores[b]) for a, b, _, m in found.compared)
    assert all(math.isnan(m) for found in every(Lab(size=20)) for *_, m in found.compared)


def test_a_proxy_judges_and_gold_still_scores():
    lab, responses = Lab(judge="proxy", intransitive=0.5), ["#ab\n", "abc;#CBA\n", "jih\n"]
    outcomes = lab.verify_all([Problem(PROMPT)] * 3, responses)
    assert [o.score for o in outcomes] == pytest.approx(Lab().gold([PROMPT] * 3, responses).tolist())
    proxy = torch.tensor([o.parts["proxy"] for o in outcomes], dtype=torch.float64)
    torch.testing.assert_close(proxy, lab.proxy([PROMPT] * 3, responses))
    found = lab.prefer(Problem(PROMPT), responses, torch.Generator())
    torch.testing.assert_close(found, ((proxy[:, None] - proxy) / 0.5).sigmoid())
    labels = [[[c[:3] for c in o.compared] for o in every(some)] for some in (lab, lab.but(judge="gold"))]
    assert labels[0] == labels[1], "the data's labels are gold's"


def test_a_logistic_model_of_one_feature_by_hand():
    # the preferred response has the feature in 30 of 40 comparisons, the other one in 10: w = log(30 / 10)
    difference = torch.tensor([[1.0]] * 30 + [[-1.0]] * 10)
    assert float(logistic(difference, 1e-13)) == pytest.approx(math.log(3), abs=1e-8)
    w = logistic(difference, 0.1)
    slope = (-10 / 40 * 1 / (1 + math.exp(-float(w)))) + 30 / 40 / (1 + math.exp(float(w)))
    assert slope == pytest.approx(0.1 * float(w), abs=1e-9)
    assert bool(logistic(torch.full((4, 2), 50.0), 1e-9).isfinite().all()), "separable"


def test_a_wider_proxy_sees_what_a_narrower_one_sees():
    assert chosen(4, 1).tolist() == chosen(20, 1).tolist()[:4]
    assert chosen(20, 1).tolist() != chosen(20, 2).tolist()
    assert sorted(chosen(WIDEST, 0).tolist()) == list(range(WIDEST)) == list(range(147))
    better, worse = read([PROMPT] * 2, ["aab", "AB"]), read([PROMPT] * 2, ["bb", "ba"])
    assert float(fit(better, worse, WIDEST, 0, 0.01).of(better).mean()) > float(
        fit(better, worse, WIDEST, 0, 0.01).of(worse).mean()
    )


def test_a_proxy_has_mean_zero_and_deviation_one_over_the_base_model():
    value = Lab(proxy_width=20).proxy.of(base_writing())
    assert abs(float(value.mean())) < 1e-9
    assert float(value.std()) == pytest.approx(1, abs=1e-9)


def curve(lab: Lab, deep, judge: str):
    gold = lab.gold.of(deep).view(16, 256)
    judged = gold if judge == "gold" else lab.proxy.of(deep).view(16, 256)
    return [tuple(float(best_of(x, judged, n).mean()) for x in (gold, judged)) for n in (1, 4, 16, 64, 256)]


def test_a_small_proxy_is_overoptimised_and_a_wide_one_less(deep):
    lab = Lab(flips=0.3, proxy_width=8)
    small = curve(lab, deep, "proxy")
    gold, proxy = [x for x, _ in small], [x for _, x in small]
    assert all(a < b for a, b in itertools.pairwise(proxy))
    assert gold[2] > gold[0] + 0.1, "at first both rise"
    assert gold[4] < gold[2] - 0.1, "then gold falls while the proxy rises"
    best = [x for x, _ in curve(lab, deep, "gold")]
    assert all(a + 0.3 < b for a, b in itertools.pairwise(best))
    ladder = [curve(Lab(proxy_width=w), deep, "proxy")[4][0] for w in (8, 48, 147)]
    assert all(a + 0.2 < b for a, b in itertools.pairwise(ladder))
    assert ladder[-1] < best[4] - 0.1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reward": "nice"}, "task.reward: expected one of peaked, additive"),
        ({"source": "web"}, "task.source"), ({"judge": "me"}, "task.judge"), ({"noise": -1.0}, "task.noise"),
        ({"noise": math.nan}, "task.noise"), ({"flips": 1.5}, "task.flips"), ({"coverage": 0.0}, "task.coverage"),
        ({"intransitive": -0.1}, "task.intransitive"), ({"non_markovian": 2}, "task.non_markovian"),
        ({"size": 769}, "task.size: expected 1 to 768"), ({"responses": 1}, "task.responses"),
        ({"proxy_width": 148}, "task.proxy_width"), ({"proxy_ridge": 0.0}, "task.proxy_ridge"),
        ({"seed": -1}, "task.seed"), ({"coverage": 0.1}, "that the coverage lets in; lower --task.size"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        Lab(**change)


def test_preference_recipes_learn_here_unless_told_otherwise():
    assert parse(["dpo"])[0].task == Lab()
    assert recipe("dpo").loop == "preference"
    assert parse(["grpo"])[0].task.part_name() == "arithmetic"


@pytest.mark.parametrize(
    "words",
    [
        ["dpo", "--task", "lab", "--task.coverage", "0.5", "--task.flips", "0.1"],
        ["online_dpo", "--task.judge", "proxy", "--task.intransitive", "0.5"],
        ["grpo", "--task", "lab", "--group-size", "2"],
    ],
)  # fmt: skip
def test_recipes_run_in_the_laboratory(words, capsys):
    main(["train", *words, "--smoke"])
    assert "on lab: smoke test passed (2 steps)" in capsys.readouterr().out
