"""Exit codes, and signals while a verb runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest
import typer
from medtransfer.cli.guard import guarded
from medtransfer.errors import ConfigError

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def raising(error):
    @guarded
    def verb():
        raise error

    return verb


@pytest.fixture
def handlers():
    """Handlers that a script has set, and that must be there after a verb."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    mine = {number: lambda *_: None for number in SIGNALS}
    for number, handler in mine.items():
        signal.signal(number, handler)
    yield mine
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("image.size is 3."), 2, "medtransfer: image.size is 3.\n"),
        (PermissionError(13, "Permission denied", "/there"), 2, "medtransfer: /there: Permission"),
        (OSError("no device"), 2, "medtransfer: no device. Check the path"),
        (KeyboardInterrupt(), 130, "Run the same command again; what is finished is kept."),
        (typer.Exit(3), 3, ""),
    ],
)
def test_errors_become_one_message_and_an_exit_code(error, code, message, capsys):
    with pytest.raises(typer.Exit) as stop:
        raising(error)()
    assert stop.value.exit_code == code
    assert message in capsys.readouterr().err


def test_an_error_of_the_program_itself_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())()


def test_a_verb_that_ends_itself_is_interrupted_by_sigterm(capsys):
    @guarded
    def verb():
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(typer.Exit) as stop:
        verb()
    assert stop.value.exit_code == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("error", [None, ConfigError("wrong"), ZeroDivisionError()])
def test_handlers_are_put_back(handlers, error):
    @guarded
    def verb():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if error is not None:
            raise error

    try:
        verb()
    except (typer.Exit, ZeroDivisionError):
        assert error is not None
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers


def test_a_verb_runs_in_another_thread_than_the_first():
    results = []

    @guarded
    def verb():
        results.append(threading.current_thread().name)

    thread = threading.Thread(target=verb, name="another")
    thread.start()
    thread.join()
    assert results == ["another"]


@pytest.mark.process
def test_a_reader_who_has_read_enough_gets_no_message():
    code = (
        "import sys; from medtransfer.cli.app import main; "
        "sys.argv = ['medtransfer', 'configs', '--schema']; main()"
    )
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(
        [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (run.returncode, run.stderr) == (1, "")
