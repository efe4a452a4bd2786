from __future__ import annotations

from studies import invoke


def test_demo_touches_no_files_of_others(tmp_path):
    (tmp_path / "mine-cohort").mkdir()
    (tmp_path / "mine-cohort" / "manifest.csv").write_text("mine")
    result = invoke("demo", "--output", tmp_path / "mine", "--patients", 30)
    assert (result.exit_code, "holds no phantom cohort" in result.output) == (2, True), (
        result.output
    )
    assert (tmp_path / "mine-cohort" / "manifest.csv").read_text() == "mine"
    assert not (tmp_path / "mine").exists()
