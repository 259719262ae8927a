"""``measure_generated_answers.py``: what it draws, compares and writes."""

import json

import measure_generated_answers as benchmark
import pytest
import torch
from library.measuring import Request

SETTINGS = benchmark.Settings(
    count=6, shortest=4, longest=20, limit=6, batch=2, size=3, layers=1, repetitions=1, threads=1
)


def test_prompts_say_where_they_and_their_answers_end():
    for mix in benchmark.MIXES:
        prompts = benchmark.draw_prompts(benchmark.Settings(count=200), mix)
        assert all(len(prompt) == prompt[0] for prompt in prompts)
        assert {min(benchmark.FIRST_WORD, *prompt[2:]) for prompt in prompts} == {1000}
        answers = [prompt[1] for prompt in prompts]
        assert 1 <= min(answers) <= max(answers) <= 64
        assert (len(set(answers)) == 1) == (mix == "alike")
    ids = torch.tensor([[0, 3, 2, 9, 9], [0, 3, 1, 9, 9], [3, 2, 9, 9, 9]])
    assert benchmark.AnswerEnds()(ids).tolist() == [False, True, True]


def test_the_way_with_the_fewest_answers_goes_on():
    began = []

    def way(name, pieces):
        for piece in pieces:
            began.append(name)
            yield {key: [] for key in piece}

    ways = {"single": way("single", [[0], [1], [2]]), "pairs": way("pairs", [[0, 1], [2]])}
    seconds, processor, answers = benchmark.in_turns(ways)
    assert began == ["single", "pairs", "single", "single", "pairs"]
    assert list(answers["single"]) == list(answers["pairs"]) == [0, 1, 2]
    assert all(len(each) == 1 for each in (*seconds.values(), *processor.values()))


@pytest.mark.slow
def test_a_row_says_how_many_answers_are_the_same(tmp_path):
    file, page = tmp_path / "rows.json", tmp_path / "page.md"
    benchmark.run(Request(SETTINGS, file, page, ["even"]))
    row = json.loads(file.read_text())["rows"]["even"]
    assert row["same"] == row["rows"] == 6
    assert row["changed_by_adapter"]
    assert "| 1 to 6 tokens" in page.read_text()
    assert "6 of 6" in page.read_text()
