from __future__ import annotations

import json

from medtransfer.cli.printing import say, say_json, say_renamed


def test_names_cannot_move_the_cursor(capsys):
    say("a\x1b[2Jb\n")
    assert capsys.readouterr().out == "a[U+001B][2Jb\n\n"


def test_an_answer_is_json(capsys):
    say_json({"auc": 0.5})
    assert json.loads(capsys.readouterr().out) == {"auc": 0.5}


def test_a_former_form_is_answered_beside_the_results(capsys):
    say_renamed("evaluate --on", "`medtransfer validate`")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        "medtransfer: evaluate --on goes with the next release; write `medtransfer validate`.\n"
    )
