from __future__ import annotations

import pytest
from medtransfer.errors import ConfigError
from medtransfer.study.share import WHOLE, Share


def test_shares_hold_every_item_once():
    items = list(range(21))
    for of in (1, 2, 5, 21, 30):
        shares = [Share(number, of).take(items) for number in range(1, of + 1)]
        assert sorted(item for share in shares for item in share) == items
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert WHOLE.take(items) == items


def test_a_share_is_written_as_it_is_read():
    assert Share.parse("3/8") == Share(3, 8)
    assert str(Share.parse(" 3/8 ")) == "3/8"


@pytest.mark.parametrize(
    "text", ["", "3", "3/", "/8", "3/8/9", "3.5/8", "-1/8", "3/0", "٣/٨", "$N/8", "1/9999999999"]
)
def test_what_is_no_share_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match="such as 3/8"):
        Share.parse(text)


@pytest.mark.parametrize("text", ["0/8", "9/8"])
def test_a_share_that_there_is_not_is_refused_with_the_array(text):
    with pytest.raises(ConfigError, match="count from 1 to 8; with a Slurm array, use --array=1-8"):
        Share.parse(text)
