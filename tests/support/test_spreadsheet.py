"""CSV for spreadsheets: no text is a formula, and numbers stay numbers."""

import csv
import io

from lorada.support.spreadsheet import spreadsheet_csv


def test_a_text_that_would_be_a_formula_is_marked_as_a_text_and_a_number_stays_one():
    cells = [
        "=1+1",
        "+cmd",
        "-x",
        "@SUM(A1)",
        "\t=1",
        "\n=1",
        "-5",
        "+3.5",
        "-inf",
        "plain",
        -2,
        'ä,"b"',
    ]
    table = spreadsheet_csv(["a"] * len(cells), [cells])
    assert table.startswith("\ufeff")
    _, row = csv.reader(io.StringIO(table, newline=""))
    assert row == [
        "'=1+1", "'+cmd", "'-x", "'@SUM(A1)", "'\t=1", "'\n=1", "-5", "+3.5", "'-inf", "plain",
        "-2", 'ä,"b"',
    ]  # fmt: skip


def test_half_a_character_does_not_stop_the_table():
    assert "?" in spreadsheet_csv(["a"], [["\ud800"]])
