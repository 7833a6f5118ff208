"""Is a step done as a whole or not at all, whenever Ctrl-C comes?"""

import os
import signal
import threading

import pytest
import torch

from invreg import CyclicRotation, InvarianceAudit
from invreg.audit.interrupts import held_back
from invreg.audit.tally import Tally
from tests.audit.test_measure import images, in_batches, mlp


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_waits_for_the_end_of_the_step():
    done = []

    def step() -> None:
        with held_back():
            interrupt()
            done.append("all of it")
        done.append("and no more")

    with pytest.raises(KeyboardInterrupt):
        step()
    assert done == ["all of it"]
    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_what_a_step_raises_comes_through():
    with pytest.raises(ValueError, match="own"), held_back():
        raise ValueError("own")
    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_other_threads_are_left_alone():
    found = []
    thread = threading.Thread(target=lambda: found.extend(["in"] if held_back().__enter__() is None else []))
    thread.start()
    thread.join()
    assert found == ["in"]


@pytest.mark.parametrize("turn", [1, 2])
def test_an_audit_holds_whole_batches_when_it_is_interrupted_while_it_adds_one(turn, tmp_path, monkeypatch):
    model, x = mlp(), images(9)
    whole = InvarianceAudit(model, CyclicRotation(4), saliency=None)
    whole.run(in_batches(x))
    add, calls = Tally._add, []

    def interrupted(tally: Tally, measured) -> None:
        calls.append(1)
        if len(calls) == turn:
            interrupt()
        add(tally, measured)

    monkeypatch.setattr(Tally, "_add", interrupted)
    audit = InvarianceAudit(model, CyclicRotation(4), saliency=None)
    with pytest.raises(KeyboardInterrupt):
        audit.run(in_batches(x), checkpoint=tmp_path / "audit.pt")
    monkeypatch.undo()
    partial = audit.report()
    assert (partial.ended, partial.samples, partial.seen) == ("interrupted", 3 * turn, 3 * turn)
    assert (tmp_path / "audit.pt").exists()
    again = InvarianceAudit(model, CyclicRotation(4), saliency=None)
    again.run(in_batches(x), checkpoint=tmp_path / "audit.pt")
    assert again.report() == whole.report()


def test_a_model_that_draws_draws_anew_for_each_batch_by_hand():
    audit = InvarianceAudit(lambda v: torch.randn(len(v), 3), CyclicRotation(4), saliency=None)
    for batch in in_batches(images(30)):
        audit.update(batch)
    assert len(set(audit.report().per_sample["logit_error"].tolist())) == 30
