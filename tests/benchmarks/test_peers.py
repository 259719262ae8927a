"""``measure_peers.py`` and ``check_peers.py``: lorada beside TRL and lm-eval."""

import importlib.util
import json
import sys
from dataclasses import replace
from unittest.mock import Mock

import check_peers
import measure_peers as benchmark
import pytest
from folders import llama_folder
from library import peers_page
from library.measuring import Request


@pytest.mark.parametrize(
    ("ratio", "code"), [(0.5, 0), (0.748, 0), (0.752, 1)], ids=["better", "noise", "worse"]
)
def test_the_check_exits_with_one_if_noise_does_not_explain_that_a_figure_is_worse(
    ratio, code, tmp_path, monkeypatch, capsys
):
    settings = benchmark.Settings(turns=4, questions=40)
    about = {**vars(settings), "hardware": {"cpu": "made up"}, "versions": {}}
    file = tmp_path / "peers.json"

    def train(ratio, noise):
        """What is measured of one row; ``noise`` is the largest ratio of a side to itself."""
        sides = {"ratio": ratio, "lowest": ratio, "highest": ratio, "lorada": ratio, "trl": 1.0}
        itself = {"ratio": 1.0, "lowest": 2 - noise, "highest": noise}
        figures = {"time": {**sides, "noise": itself}}
        return {"settings": about, "rows": {"train": {"figures": figures, "turns": 1}}}

    stored = train(0.7, 1.05)
    file.write_text(json.dumps(stored))
    measure = Mock(return_value=train(ratio, 1.02))  # together 7 % may be noise
    monkeypatch.setattr(benchmark, "run", measure)
    monkeypatch.setattr(check_peers, "run_measurements", lambda run, request: run(request))
    monkeypatch.setattr(sys, "argv", ["check", "--results", str(file)])
    with pytest.raises(SystemExit, match=f"^{code}$"):
        check_peers.main()
    assert len(capsys.readouterr().out.splitlines()) == code
    (request,) = measure.call_args.args
    assert request.names == ["train"]
    assert request.settings == replace(settings, turns=1)
    assert json.loads(file.read_text()) == stored


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("trl"), reason="needs trl: pip install trl")
@pytest.mark.skipif(not importlib.util.find_spec("lm_eval"), reason="needs lm_eval")
def test_both_sides_of_a_row_do_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("PEERS_PYTHON", sys.executable)
    model = llama_folder(tmp_path / "llama", max_position_embeddings=512)
    settings = benchmark.Settings(model=str(model), turns=1, threads=1, mixed_rows=8, questions=6)
    names, page = ["mixed", "evaluate"], tmp_path / "page.md"
    rows = benchmark.run(Request(settings, tmp_path / "peers.json", page, names))["rows"]
    assert list(rows) == names
    ours, theirs = (rows["mixed"]["sides"][side] for side in ("lorada", "trl"))
    assert ours["labelled"] == theirs["labelled"] > 0
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.01)
    assert rows["evaluate"]["same"] == rows["evaluate"]["questions"] == 6
    for measured in rows.values():
        assert all(one["ratio"] > 0 for one in measured["figures"].values())
    text = page.read_text()
    assert all(peers_page.LIMITS[name][0] in text for name in names)
    assert "6 of 6 chosen answers agree" in text
