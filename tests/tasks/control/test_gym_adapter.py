"""The Gymnasium adapter: the semantics of native environments, encodings, restarts and bad environments."""

import importlib.util

import numpy as np
import pytest
import torch
from gymnasium import spaces
from small_envs import counters, go, seeded

from partita.core.errors import NonFinite, UserError
from partita.core.spaces import Box, Discrete, MultiDiscrete
from partita.tasks.control.gym import Gym


@pytest.mark.parametrize("vectorisation", ["sync", "async"])
def test_ends_keep_their_true_last_observation(vectorisation):
    envs = counters(2, vectorisation=vectorisation)
    try:
        tags = envs.obs[:, 0].tolist()
        for k in (1, 2):
            moved = go(envs)
            assert moved.final_obs is None
            assert moved.reward.tolist() == [k, k]
            assert moved.obs.tolist() == [[tags[0], k], [tags[1], k]]
        end = go(envs)
        assert end.terminated.tolist() == [True, True]
        assert end.truncated.tolist() == [False, False]
        assert end.final_obs.tolist() == [[tags[0], 3.0], [tags[1], 3.0]]
        assert end.obs[:, 1].tolist() == [0.0, 0.0]
        assert not set(end.obs[:, 0].tolist()) & set(tags)
        assert torch.equal(envs.obs, end.obs)
        assert (end.obs.dtype, end.reward.dtype, end.terminated.dtype) == (torch.float32, torch.float32, torch.bool)
    finally:
        envs.close()


def test_time_limits_truncate_and_an_end_at_the_limit_is_an_end():
    cut = counters(1, id="PartitaCounter-v1", last=9)
    for _ in range(3):
        assert not go(cut).truncated.any()
    moved = go(cut)
    assert (moved.terminated.item(), moved.truncated.item()) == (False, True)
    assert moved.final_obs[0, 1] == 4.0
    both = counters(1, id="PartitaCounter-v1", last=4)
    for _ in range(3):
        go(both)
    moved = go(both)
    assert (moved.terminated.item(), moved.truncated.item()) == (True, False)
    assert Gym(id="PartitaCounter-v1").horizon == 4
    assert Gym(id="PartitaCounter-v1", max_steps=2).horizon == 2
    assert Gym(id="PartitaCounter-v0").horizon == 27_000
    assert Gym(id="CartPole-v1").horizon == Gym(id="gymnasium:CartPole-v1").horizon == 500


@pytest.mark.parametrize("vectorisation", ["sync", "async"])
def test_without_auto_reset_the_finished_stay_finished(vectorisation):
    envs = counters(2, auto_reset=False, vectorisation=vectorisation)
    try:
        tags = envs.obs[:, 0].tolist()
        rewards = []
        for k in range(1, 7):
            moved = go(envs)
            rewards.append(moved.reward.tolist())
            assert moved.obs.tolist() == [[tags[0], min(k, 3)], [tags[1], min(k, 3)]]
            assert moved.terminated.tolist() == [k >= 3] * 2
            assert moved.truncated.tolist() == [False] * 2
            assert moved.final_obs is None if k < 3 else torch.equal(moved.final_obs, moved.obs)
        assert rewards == [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]] + [[0.0, 0.0]] * 3
    finally:
        envs.close()


def test_equal_seeds_start_equal_episodes_whose_successors_differ():
    envs = counters(seeds=[7, 7, 8])
    first = envs.obs[:, 0].tolist()
    assert first[0] == first[1] != first[2]
    for _ in range(3):
        moved = go(envs)
    assert len(set(moved.obs[:, 0].tolist())) == 3


def trail(envs, steps=11):
    moves = [go(envs) for _ in range(steps)]
    return torch.stack([m.obs for m in moves])


def test_the_same_generator_gives_the_same_run():
    assert torch.equal(trail(counters(generator=seeded(3))), trail(counters(generator=seeded(3))))
    assert not torch.equal(trail(counters(generator=seeded(3))), trail(counters(generator=seeded(4))))


@pytest.mark.parametrize("auto_reset", [True, False])
def test_saving_restarts_and_loading_continues_alike(auto_reset):
    generator = seeded(1)
    envs = counters(generator=generator, auto_reset=auto_reset)
    trail(envs, 4)
    noise = generator.get_state()
    first = envs.state_dict()
    assert torch.equal(generator.get_state(), noise)  # saving draws nothing
    start = envs.obs.clone()
    assert start[:, 1].tolist() == [0.0] * 3
    expected = trail(envs)
    second = envs.state_dict()
    assert not torch.equal(envs.obs, start)  # each save starts other episodes
    again = trail(envs)
    other = counters(generator=seeded(99), auto_reset=auto_reset)
    trail(other, 2)
    other.load_state_dict(first)
    assert torch.equal(other.obs, start)
    assert torch.equal(trail(other), expected)
    assert other.state_dict() == second
    assert torch.equal(trail(other), again)
    assert envs.restarts


def test_classic_cartpole_is_the_native_one():
    """The adapter and the native environment agree over episodes, ends included."""
    from partita.tasks.control.classic import Cartpole

    generator = seeded(2)
    envs = Gym(id="CartPole-v1").envs([1, 2, 3, 4], generator)
    native = Cartpole().envs(envs.obs.clone(), generator, auto_reset=False)
    over = torch.zeros(4, dtype=torch.bool)
    for action in torch.randint(2, (60, 4), generator=generator):
        theirs, ours = envs.step(action), native.step(action)
        seen = theirs.obs if theirs.final_obs is None else theirs.final_obs
        torch.testing.assert_close(seen[~over], ours.obs[~over], rtol=0, atol=1e-4)
        assert torch.equal(theirs.terminated[~over], ours.terminated[~over])
        over = over | ours.terminated
    assert over.all()


@pytest.mark.parametrize(
    ("space", "ours", "action", "arrives"),
    [
        (spaces.Discrete(3, start=-1), Discrete(3), [2], 1),
        (spaces.MultiDiscrete([2, 4]), MultiDiscrete((2, 4)), [[1, 3]], [1, 3]),
        (spaces.MultiDiscrete([[2, 4], [3, 3]]), MultiDiscrete((2, 4, 3, 3)), [[1, 3, 0, 2]], [[1, 3], [0, 2]]),
        (spaces.MultiDiscrete([3, 3], start=[10, 20]), MultiDiscrete((3, 3)), [[0, 2]], [10, 22]),
        (spaces.MultiBinary(3), MultiDiscrete((2, 2, 2)), [[1, 0, 1]], [1, 0, 1]),
        (
            spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 5.0]), dtype=np.float64),
            Box(2, (-1.0, 0.0), (1.0, 5.0)),
            [[-3.0, 4.0]],
            [-1.0, 4.0],
        ),
        (spaces.Box(-1, 1, (2, 2), np.float32), Box(4, (-1.0,) * 4, (1.0,) * 4), [[0, 1, 2, -9]], [[0, 1], [1, -1]]),
    ],
)
def test_actions_arrive_in_the_environments_own_form(space, ours, action, arrives):
    task = Gym(id="PartitaEcho-v0", kwargs={"action": space})
    assert task.action_space == ours
    envs = task.envs([0], seeded())
    envs.step(torch.tensor(action))
    (got,) = envs.vector.envs[0].unwrapped.got
    assert np.array_equal(got, arrives)
    assert space.contains(np.int64(got) if np.isscalar(got) else got)


def observed(space, value):
    task = Gym(id="PartitaEcho-v0", kwargs={"observation": space, "observe": lambda _: value})
    envs = task.envs([0, 1], seeded())
    assert envs.obs.shape == (2, *task.observation_shape)
    moved = envs.step(torch.zeros(2, dtype=torch.int64))
    assert torch.equal(envs.obs, moved.obs)
    # Images travel as bytes, not as four times as many.
    assert envs.vector.single_observation_space.dtype == (np.uint8 if envs.obs.dim() == 4 else np.float32)
    return envs.obs[0]


def test_pixels_become_channels_first_bytes():
    image = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    seen = observed(spaces.Box(0, 255, (4, 5, 3), np.uint8), image)
    assert seen.dtype == torch.uint8
    assert seen.shape == (3, 4, 5)
    assert seen[2, 3, 1] == image[3, 1, 2]
    grey = observed(spaces.Box(0, 255, (4, 5), np.uint8), image[..., 0])
    assert torch.equal(grey, torch.tensor(image[None, ..., 0]))
    stacked = observed(spaces.Box(0, 255, (4, 5, 6), np.uint8), np.zeros((4, 5, 6), np.uint8))
    assert stacked.shape == (4, 5, 6)


def test_other_observations_are_flattened():
    assert observed(spaces.Box(-9, 9, (2, 2), np.float64), np.array([[1, 2], [3, 4]])).tolist() == [1, 2, 3, 4]
    assert observed(spaces.Box(0, 255, (3,), np.uint8), np.array([1, 2, 255], np.uint8)).tolist() == [1, 2, 255]
    assert observed(spaces.Discrete(3, start=1), 2).tolist() == [0, 1, 0]
    assert observed(spaces.MultiDiscrete([2, 3]), np.array([1, 0])).tolist() == [0, 1, 1, 0, 0]
    table = spaces.Dict({"a": spaces.Box(-9, 9, (2,), np.float32), "b": spaces.Discrete(2)})
    assert observed(table, {"a": np.array([5.0, 6.0], np.float32), "b": 1}).tolist() == [5, 6, 0, 1]
    pair = spaces.Tuple((spaces.Discrete(2), spaces.MultiBinary(2)))
    assert observed(pair, (0, np.array([1, 1], np.int8))).tolist() == [1, 0, 1, 1]


def test_frames_are_those_of_each_copy():
    envs = Gym(id="PartitaEcho-v0", kwargs={"render_mode": "rgb_array"}).envs([0, 1], seeded())
    go(envs)
    frames = envs.render()
    assert [frame.shape for frame in frames] == [(4, 6, 3)] * 2
    assert int(frames[1].max()) == 1
    with pytest.raises(UserError, match="render_mode=rgb_array"):
        Gym(id="CartPole-v1").envs([0], seeded()).render()


@pytest.mark.parametrize("vectorisation", ["sync", "async"])
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("raise", "step raised RuntimeError: out of balls"), ("nan", "observation holds nan at entry 1"),
        ("inf", "observation holds inf at entry 0"), ("huge", "observation holds inf at entry 1"),
        ("shape", r"observation has shape \(3,\), its space \(2,\)"), ("text", "observation is not an array"),
        ("reward", "reward is nan"), ("rewards", r"reward is array\(\[0., 0.\]\)"), ("none", "reward is None"),
    ],
)  # fmt: skip
def test_a_bad_step_is_named(fault, says, vectorisation):
    envs = counters(2, fault=fault, vectorisation=vectorisation)
    try:
        go(envs)
        with pytest.raises(UserError, match=f"PartitaCounter-v0: environment 0, episode 1, step 2: {says}.*; repair"):
            go(envs)
    finally:
        envs.close()


def test_the_environment_that_fails_is_named_even_when_others_work():
    envs = counters(3)
    envs.vector.envs[1].unwrapped.fault = "nan"
    go(envs)
    with pytest.raises(UserError, match="environment 1, episode 1, step 2"):
        go(envs)


def test_a_reset_that_raises_is_named():
    envs = counters(2, fault="reset")
    go(envs)
    go(envs)
    with pytest.raises(UserError, match="environment 0, episode 2, step 0: reset raised ValueError: no second life"):
        go(envs)


def test_observations_that_do_not_fit_a_structured_space():
    table = spaces.Dict({"a": spaces.Discrete(2)})
    task = Gym(id="PartitaEcho-v0", kwargs={"observation": table, "observe": lambda _: {"b": 1}})
    with pytest.raises(UserError, match=r"environment 0, episode 1, step 0: observation does not fit its space"):
        task.envs([0], seeded())
    pixels = spaces.Box(0, 255, (4, 5, 3), np.uint8)
    task = Gym(id="PartitaEcho-v0", kwargs={"observation": pixels, "observe": lambda _: np.zeros((4, 5, 3))})
    with pytest.raises(UserError, match="observation is not an array of numbers"):
        task.envs([0], seeded())


def test_a_policy_that_gives_nan_is_blamed_itself():
    task = Gym(id="Pendulum-v1")
    envs = task.envs([0, 1], seeded())
    with pytest.raises(NonFinite, match=r"Pendulum-v1: environment 1: the policy's action is \[nan\]"):
        envs.step(torch.tensor([[0.0], [float("nan")]]))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"id": "CartPol-v1"}, "gym:CartPol-v1: no such environment; did you mean CartPole-v1"),
        ({"id": "CartPole-v9"}, "no such environment; did you mean CartPole-v1"),
        ({"id": "ALE/Pong-v5"}, "install the package that registers `ALE`"),
        ({"id": "no_such_module:X-v1"}, "needs a package that is not installed"),
        ({"id": "PartitaCounter-v0", "kwargs": {"lst": 3}}, "could not be made with {'lst': 3}.*TypeError"),
        ({"id": "PartitaCounter-v0", "kwargs": {"fault": "make"}}, "could not be made.*broken at birth"),
        ({"id": "LunarLander-v2"}, "no longer supported.*LunarLander-v3"),
        (
            {"id": "PartitaEcho-v0", "kwargs": {"action": spaces.Dict({"a": spaces.Discrete(2)})}},
            "actions of Dict.*wrap the environment",
        ),
        (
            {"id": "PartitaEcho-v0", "kwargs": {"action": spaces.Box(0, 9, (2,), np.int64)}},
            "cannot be chosen by a policy here",
        ),
        (
            {"id": "PartitaEcho-v0", "kwargs": {"observation": spaces.Text(5)}},
            "observations of Text space cannot be made into one array",
        ),
        (
            {"id": "PartitaEcho-v0", "kwargs": {"observation": spaces.Sequence(spaces.Discrete(2))}},
            "observations of Sequence space",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_environments_that_cannot_be_made_are_explained(settings, says):
    with pytest.raises(UserError, match=says) as caught:
        Gym(**settings).envs([0], seeded())
    assert "\n" not in str(caught.value)


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match=r"task\.vectorisation: gym got 'parallel'"):
        Gym(vectorisation="parallel")
    with pytest.raises(UserError, match=r"task\.max_steps"):
        Gym(max_steps=0)


HAS_MUJOCO = importlib.util.find_spec("mujoco") is not None


@pytest.mark.skipif(HAS_MUJOCO, reason="MuJoCo is installed")
def test_missing_mujoco_names_the_extra():
    with pytest.raises(UserError, match=r'gym:HalfCheetah-v5.*pip install "partita\[mujoco\]"'):
        _ = Gym(id="HalfCheetah-v5").horizon


@pytest.mark.skipif(not HAS_MUJOCO, reason="needs MuJoCo")
def test_mujoco_runs_and_restarts_alike():
    task = Gym(id="HalfCheetah-v5")
    assert task.observation_shape == (17,)
    assert task.action_space == Box(6, (-1.0,) * 6, (1.0,) * 6)
    generator = seeded()
    envs, other = (task.envs(task.problems(2, generator), generator) for _ in range(2))
    state = envs.state_dict()
    other.load_state_dict(state)
    for action in torch.randn(20, 2, 6, generator=generator):
        a, b = envs.step(action), other.step(action)
        assert torch.equal(a.obs, b.obs)
        assert torch.equal(a.reward, b.reward)
