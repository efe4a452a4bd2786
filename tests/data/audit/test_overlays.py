"""Boxes as `check` draws them."""

from __future__ import annotations

from wild_files import coco, invoke, mark, pictures


def test_check_draws_boxes_on_planes_and_volumes(tmp_path):
    names = pictures(tmp_path / "images", ["a.png", "b.png"])
    coco(tmp_path / "m.json", names, [mark(0, 0)])
    config = (
        "task: detection\ncohort: {root: %s, boxes: %s}\narms:\n  scratch: "
        "{backbone: tf_efficientnet_lite0, weights: none}\n"
    )
    (tmp_path / "s.yaml").write_text(config % (tmp_path / "images", tmp_path / "m.json"))
    result = invoke("check", tmp_path / "s.yaml", "--output", tmp_path / "out", "--quiet")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "out" / "check.html").read_text()
    assert 'alt="a.png with its boxes"' in page
    assert "m.json: 1 annotations, 1 used" in page
