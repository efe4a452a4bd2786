"""How a training is asked to end."""

from __future__ import annotations

import os
import signal
import time

import pytest
from medtransfer.training import (
    interruption,
)
from medtransfer.training.interruption import asked, finishing_steps


def test_a_second_signal_acts_at_once(monkeypatch):
    monkeypatch.setattr(interruption, "_SAME", 0.05)
    called = []

    def work():
        with finishing_steps(lambda: called.append("told")):
            assert not asked()
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)  # the same one, sent twice
            assert asked()
            called.append("finished the step")
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
            called.append("never")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert called == ["told", "finished the step"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_end_can_be_asked_for_by_a_note(tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    try:
        monkeypatch.setattr(interruption, "_note", None)
        interruption.obey_note(tmp_path / "end")
        with finishing_steps():
            assert not asked()
            (tmp_path / "end").touch()
            assert asked()
    finally:
        signal.signal(signal.SIGINT, before)
