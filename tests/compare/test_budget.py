"""``limit_of``: shares and numbers of parameters as users write them."""

import pytest

from lorada.compare.sizes import limit_of


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("0.2%", 269_030), ("0.2 %", 269_030), ("100%", 134_515_008), ("1e-3%", 1345),
        ("100000", 100_000), ("100_000", 100_000), (" 1 ", 1),
    ],
)  # fmt: skip
def test_a_budget_is_a_share_or_a_number(text, limit):
    assert limit_of(text, 134_515_008) == limit


def test_a_share_is_exact():
    assert all(limit_of(f"{n / 10}%", 1000) == n for n in range(1, 1001))


@pytest.mark.parametrize(
    "text",
    ["0", "0%", "-1", "-0.2%", "100.1%", "nan%", "inf%", "", "%", "much", "1e5", "0.2", "1,000"],
)
def test_anything_else_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match=r"such as 0\.2%, nor a number") as caught:
        limit_of(text, 1000)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)
