"""The table of a comparison: its columns, and what a cell shows and is sorted by."""

import dataclasses

from made_up_summary import made_up_summary

from lorada.report.comparison.table import Cell, table_columns, table_rows


def with_lines(summary, **changes):
    """The summary with the same changes to each scored line."""
    lines = tuple(
        line if line.score is None else dataclasses.replace(line, **changes)
        for line in summary.lines
    )
    return dataclasses.replace(summary, lines=lines)


def cells_of(summary, title, unit=None):
    """The cells of one column, from above."""
    columns = table_columns(summary)
    (number,) = (
        number
        for number, column in enumerate(columns)
        if column.title == title and unit in (None, column.unit)
    )
    return [row.cells[number - 1] for row in table_rows(summary)]


def test_every_row_has_a_cell_in_every_column():
    for summary in (made_up_summary(), with_lines(made_up_summary(), value=0.5)):
        widths = {len(row.cells) + 1 for row in table_rows(summary)}
        assert widths == {len(table_columns(summary))}


def test_the_metric_has_a_column_only_if_the_score_is_another_number():
    summary = made_up_summary()
    titles = [column.title for column in table_columns(summary)]
    assert "exact_match" not in titles
    other = with_lines(summary, value=55.123)
    assert cells_of(other, "exact_match")[0] == Cell("55.12", 55.123)


def test_candidates_tested_against_sizes_of_one_method_name_the_size():
    summary = made_up_summary(budgets=("0.1%", "0.2%"))
    lines = tuple(
        dataclasses.replace(line, against=f"lora ({line.budget})", p_against=0.2)
        for line in summary.lines
    )
    cells = cells_of(dataclasses.replace(summary, lines=lines), "p", "against lora")
    assert {cell.note for cell in cells if cell.note} == {"lora (0.1%)", "lora (0.2%)"}


def test_a_reason_is_shown_below_the_name_and_its_cells_are_empty():
    row = next(row for row in table_rows(made_up_summary()) if row.name == "boft")
    assert row.kind == "failed"
    assert row.notes == ["boft does not fit: 576 is no multiple of 5"]
    assert set(row.cells) == {Cell()}
