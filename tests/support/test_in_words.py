"""Times in words."""

from lorada.support.in_words import duration


def test_a_time_is_in_seconds_minutes_or_hours_by_its_length():
    found = [duration(seconds) for seconds in (31, 89, 91, 720, 9000)]
    assert found == ["31 s", "89 s", "2 min", "12 min", "2.5 h"]
