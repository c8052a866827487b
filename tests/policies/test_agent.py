"""What an agent is asked twice in an update is computed once, as long as it is still true."""

import pytest
import torch

from agents import agent, transitions

ASKED = {
    "actor": lambda a, b, lagged: a.head(b.obs, lagged),
    "critic": lambda a, b, lagged: a.q(b.obs, b.action, lagged),
    "value": lambda a, b, lagged: a.values(b.obs, lagged),
}


@pytest.mark.parametrize("lagged", [False, True])
@pytest.mark.parametrize("network", ASKED)
def test_an_answer_is_kept_until_its_network_moves(network, lagged):
    made, batch = agent(), transitions()
    networks = made.lagged if lagged else made.policy.module

    def ask():
        return ASKED[network](made, batch, lagged)

    assert ask() is not ask()  # outside an update everything is computed
    with made.update(), torch.no_grad():
        first = ask()
        assert ask() is first
        for other in ASKED.keys() - {network}:
            made.moved(other)
        assert ask() is first
        for parameter in getattr(networks, network).parameters():
            parameter.mul_(2)
        made.moved(network)
        assert (ask() is first) == lagged  # lagging networks are moved after everything else
        assert lagged or not torch.equal(ask(), first)
    assert ask() is not first


def test_other_tensors_and_other_numbers_of_critics_are_other_questions():
    made, batch = agent(), transitions()
    with made.update():
        both = made.q(batch.obs, batch.action)
        torch.testing.assert_close(made.q(batch.obs, batch.action, first=1), both[:1])
        assert made.q(batch.obs.clone(), batch.action) is not both and made.q(batch.next_obs, batch.action) is not both
        assert not torch.equal(made.q(batch.obs, batch.action, lagged=True), both)


def test_answers_without_gradients_are_not_given_where_gradients_are_asked():
    made, batch = agent(), transitions()
    with made.update():
        with torch.no_grad():
            plain = made.q(batch.obs, batch.action)
        found = made.q(batch.obs, batch.action)
        assert found.requires_grad and not plain.requires_grad
        found.sum().backward()  # its graph is gone with the step of whichever network
        made.moved("actor")
        made.q(batch.obs, batch.action).sum().backward()
        with torch.no_grad():
            assert made.q(batch.obs, batch.action) is plain


def test_an_update_that_fails_keeps_nothing():
    made, batch, asked = agent(), transitions(), []

    def fail():
        with made.update():
            asked.append(made.head(batch.obs))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert made.head(batch.obs) is not asked[0]
