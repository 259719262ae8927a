"""``measure_peers.py`` and ``check_peers.py``: lorada beside TRL and lm-eval."""

import importlib.util
import json
import sys
from dataclasses import replace
from unittest.mock import Mock

import check_peers
import measure_peers as benchmark
import pytest
from folders import byte_tokenizer, llama_folder
from library import peers_page
from library.agreement import DisagreementError
from library.made_up_rows import questions
from library.measuring import Request
from library.whole_processes import Finished, compare, run_in_turns
from library.worsened import worsened

FIGURES = ("time", "work", "memory", "start")


def figure(ratio, noise=1.0):
    return {
        "ratio": ratio, "lowest": ratio, "highest": ratio, "lorada": ratio, "trl": 1.0,
        "noise": {"ratio": 1.0, "lowest": 2 - noise, "highest": noise},
    }  # fmt: skip


def row(**figures):
    return {"figures": figures, "turns": 1}


def test_candidates_of_a_question_have_the_same_number_of_tokens():
    tokenizer = byte_tokenizer()
    made = questions(tokenizer, 20)
    assert made == questions(tokenizer, 20)
    for one in made:
        assert len({len(tokenizer(text)["input_ids"]) for text in one["candidates"]}) == 1
        assert 2 <= len(set(one["candidates"])) == len(one["candidates"]) <= 5
        assert one["answer"] < len(one["candidates"])


def test_sides_take_turns_and_are_compared_by_their_medians():
    order = []

    def side(name, seconds):
        def run(turn):
            order.append(name)
            taken = seconds * (turn + 1)
            stamps = {"begin": 1.0, "end": 1.0 + taken / 2}
            return Finished(taken, 2 * taken, 100 * taken, 0.0, stamps)

        return run

    sides = {"lorada": side("a", 1.0), "again": side("b", 1.5), "trl": side("c", 2.0)}
    done = run_in_turns(sides, 3)
    assert "".join(order) == "abcbcacab"
    found = compare(done, "lorada", "again", "trl")
    assert found["turns"] == 3
    for one in ("time", "work", "processor", "memory"):
        assert found["figures"][one]["ratio"] == 0.5
        assert found["figures"][one]["noise"]["ratio"] == 1.5
    assert found["figures"]["memory"]["lorada"] == 200
    assert found["figures"]["work"]["trl"] == 2.0


def test_trainings_that_did_other_work_are_not_compared():
    ours = {"labelled": 100, "trained": 10, "loss": 5.0}
    benchmark.check_same_work(ours, {**ours, "loss": 5.1})
    for what in ours:
        with pytest.raises(DisagreementError, match=what):
            benchmark.check_same_work(ours, {**ours, what: ours[what] * 2})


def test_only_what_noise_does_not_explain_is_worse():
    before = {"train": row(time=figure(0.7, noise=1.05), memory=figure(0.5))}

    def lines(time, memory, noise=1.02):
        now = {"train": row(time=figure(time, noise), memory=figure(memory))}
        return worsened(before, now, FIGURES, same_machine=True)

    assert lines(0.5, 0.4) == []  # better
    assert lines(0.748, 0.5) == []  # 6.9 % more, of which 7 % may be noise
    assert lines(0.7, 0.509) == []  # without noise 2 % are allowed
    assert lines(0.75, 0.511) == [
        "train, time: 0.750 instead of 0.700, and noise explains 7.0%",
        "train, memory: 0.511 instead of 0.500, and noise explains 2.0%",
    ]
    before, now = {"start": row(start=figure(5.0))}, {"start": row(start=figure(9.0))}
    assert worsened(before, now, FIGURES, same_machine=False) == []  # seconds of another one
    assert len(worsened(before, now, FIGURES, same_machine=True)) == 1


@pytest.mark.parametrize(("ratio", "code"), [(0.7, 0), (0.8, 1)])
def test_the_check_exits_with_one_if_a_figure_is_worse(ratio, code, tmp_path, monkeypatch, capsys):
    settings = benchmark.Settings(turns=4, questions=40)
    about = {**vars(settings), "hardware": {"cpu": "made up"}, "versions": {}}
    file = tmp_path / "peers.json"
    stored = {"settings": about, "rows": {"train": row(time=figure(0.7))}}
    file.write_text(json.dumps(stored))
    measure = Mock(return_value={"settings": about, "rows": {"train": row(time=figure(ratio))}})
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
