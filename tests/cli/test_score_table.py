"""The table of methods in a terminal of 80 columns."""

from dataclasses import replace

from made_up_comparison import renamed

from lorada.cli.compare_commands import _show_report

LONG = "lora+lmam:lora.r=4|8|16:lmam.rank=1|2:map_learning_rate=1e-3 (0.2%, 1000000)"


def test_the_report_fits_80_columns_and_cuts_no_name(made_up_summary, capsys, tmp_path):
    lines = [renamed(one, f"{LONG} {number}") for number, one in enumerate(made_up_summary.lines)]
    _show_report(replace(made_up_summary, lines=tuple(lines)), [tmp_path], as_json=False)
    said = capsys.readouterr().out.splitlines()
    begin = next(i for i, line in enumerate(said) if "expected loss  parameters" in line)
    table = said[begin : next(i for i, line in enumerate(said) if line.startswith("•"))]
    assert max(map(len, table)) <= 80
    assert table[1].rstrip().endswith("  take")
    names = "".join(line[: table[0].index("score")].strip() for line in table)
    whole = "".join(table)
    for one in made_up_summary.lines:
        if one.score is not None:
            assert f"{one.score:.1f} ± " in whole
            assert f"{one.trainable:,}" in whole
    assert names.replace(" ", "").count(LONG.replace(" ", "")) == len(made_up_summary.scored)
