"""The table of methods in a terminal of 80 columns."""

from dataclasses import replace

from made_up_comparison import renamed

from lorada.cli.compare_commands import _show_report, score_table, shortened

LONG = "lora+lmam:lora.r=4|8|16:lmam.rank=1|2:map_learning_rate=1e-3 (0.2%, 1000000)"


def test_names_are_shortened_in_the_middle():
    assert shortened("lorada_la", 9) == "lorada_la"
    assert shortened("lora+lmam (0.1%)", 11) == "lora+…0.1%)"
    assert len(shortened(LONG, 20)) == 20


def test_each_method_has_one_line_whose_columns_stand_below_each_other():
    rows = [
        (LONG, 100.0, 92.25, 100.0, "ab", 12.34, 1_234_567_890, "not learned"),
        ("ia3", 58.0, 51.0, 65.0, "b", None, 61_440, ""),
        ("the commonest answer", 50.0, None, None, "", None, None, ""),
    ]
    assert score_table("score", ".1f", rows, 80) == [
        "                  score ± 95 %  group  expected loss     parameters",
        "lora+lma…000000)   100.0 ± 7.8     ab           12.3  1,234,567,890  not learned",
        "ia3                 58.0 ± 7.0      b              –         61,440",
        "the comm… answer          50.0      –              –              –",
    ]


def test_the_report_fits_80_columns(made_up_summary, capsys, tmp_path):
    lines = [renamed(one, f"{LONG} {number}") for number, one in enumerate(made_up_summary.lines)]
    _show_report(replace(made_up_summary, lines=tuple(lines)), [tmp_path], as_json=False)
    said = capsys.readouterr().out.splitlines()
    table = said[next(i for i, line in enumerate(said) if "expected loss  parameters" in line) :]
    for line, one in zip(table[1:], made_up_summary.lines, strict=False):
        if one.score is None:
            break
        assert len(line) <= 80
        assert line.startswith("lora+lm")
        assert f"{one.score:.1f} ± " in line
        assert f"{one.trainable:,}" in line
    assert table[1].endswith("  take")
