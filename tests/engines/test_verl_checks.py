"""What our trainers of verl are, what they refuse, and what they save."""

# ruff: noqa: E402  (what needs verl is imported after the skip)

from types import SimpleNamespace

import pytest
import torch
from verl_rows import composed, drawn

from partita.core.errors import UserError

pytest.importorskip("verl", reason="verl is not installed; `make peers` runs these")
pytest.importorskip("transfer_queue", reason="TransferQueue is not installed; `make peers` runs these")
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

from verl.trainer.ppo.v1 import PPOTrainer, get_trainer_cls
from verl_trainers import LEAST, OBJECTIVE, SEPARATE, credited, trainer

from partita.engines.verl.checks import check, complaints
from partita.engines.verl.trainer import PartitaTrainer


@pytest.mark.parametrize(("name", "mode"), [
    ("partita", "sync"), ("partita_colocate_async", "colocate_async"), ("partita_separate_async", "separate_async"),
])  # fmt: skip
def test_a_trainer_is_verl_s_of_the_same_mode(name, mode):
    more = SEPARATE if mode == "separate_async" else ()
    one, plain = trainer("leave_one_out", *more, mode=name), get_trainer_cls(mode)
    assert isinstance(one, plain) and isinstance(one, PartitaTrainer)
    assert one.trainer_mode == mode
    assert type(one.replay_buffer).__name__ == ("ReplayBuffer" if mode == "sync" else "ReplayBufferAsync")


REFUSED = [
    ("gae", (), r"credit gae reads values of a critic; set critic\.enable=true"),
    ("monte_carlo", ("+algorithm.partita={critic: true}",), "credit monte_carlo reads values of a critic"),
    ("greedy_baseline", (), "credit greedy_baseline does not run in verl: reads the return of a greedy response"),
    ("leave_one_out", ("actor_rollout_ref.rollout.n=1",), "compares the responses of a group"),
    ("leave_one_out", ("+algorithm.partita={eps: 1}",), "credit has no field `eps`"),
    ("constant", (f"{OBJECTIVE}pacs", "actor_rollout_ref.rollout.n=1"), "labelled_score compares the responses of"),
    ("constant", (f"{OBJECTIVE}pacs", "actor_rollout_ref.actor.shuffle=true"), r"set .*actor\.shuffle=false"),
    ("leave_one_outt", (), "no such part; did you mean leave_one_out"),
    ("constant", (f"{OBJECTIVE}direct",), "objective direct does not run in verl: a loss of comparisons"),
    ("constant", (f"{OBJECTIVE}reinforce", "distillation.enabled=true"), r"set distillation\.enabled=false"),
]  # fmt: skip


@pytest.mark.parametrize(("credit", "overrides", "told"), REFUSED)
def test_what_cannot_work_is_refused_before_anything_is_started(credit, overrides, told):
    config = composed(*LEAST, f"algorithm.adv_estimator=partita/{credit}", *overrides)
    with pytest.raises(UserError, match=told):
        check(config, critic=False, reference=False)


def test_a_trainer_is_not_made_for_it():
    with pytest.raises(UserError, match="credit gae reads values of a critic"):
        trainer("gae")


def test_references_are_asked_for():
    part = SimpleNamespace(slot="objective", needs=("ref_logp",), unit="step", part_name=lambda: "mine")
    config = composed(*LEAST)
    assert "actor.kl_loss_coef=0" in next(complaints(part, config, critic=False, reference=False))
    assert not list(complaints(part, config, critic=False, reference=True))


@pytest.mark.parametrize("how", ["auto", "resume_path"])
def test_what_credit_remembers_is_saved_and_found_again(how, tmp_path, monkeypatch):
    folder = f"trainer.default_local_dir={tmp_path}"
    first = trainer("riskpo", folder)
    credited(first, drawn(0), monkeypatch)
    first.global_steps = 7
    monkeypatch.setattr(PPOTrainer, "_save_checkpoint", lambda self: None)
    first._save_checkpoint()
    after, _, _ = credited(first, drawn(1), monkeypatch)

    where = [folder] if how == "auto" else [f"trainer.resume_from_path={tmp_path}/global_step_7"]
    second = trainer("riskpo", f"trainer.resume_mode={how}", *where)
    monkeypatch.setattr(PPOTrainer, "_load_checkpoint", lambda self: setattr(self, "global_steps", 7))
    second._load_checkpoint()
    assert torch.equal(credited(second, drawn(1), monkeypatch)[0], after)
    fresh, _, _ = credited(trainer("riskpo", folder), drawn(1), monkeypatch)
    assert (fresh - after).abs().max() > 1e-3


def test_without_a_memory_nothing_is_saved(tmp_path, monkeypatch):
    one = trainer("leave_one_out", f"trainer.default_local_dir={tmp_path}")
    one.global_steps = 1
    monkeypatch.setattr(PPOTrainer, "_save_checkpoint", lambda self: None)
    one._save_checkpoint()
    assert not list(tmp_path.iterdir())
