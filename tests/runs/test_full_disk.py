"""A disk that fills up: one line, exit code 2, nothing lost, the same end after all."""

import re

import pytest
from crashes import check_the_end, check_what_is_left, number

QUICK = {
    "the recipe": (r"open .*recipe\.yaml", "full", "then run the command again"),
    "weights": ("safetensors checkpoint-4", "half full", "at step 4.*--resume"),
    "optimizer": ("torch.save checkpoint-4/optimizer", "half full", "at step 4.*--resume"),
    "the result": (r"open .*result\.json", "no space", r"result\.json.*--resume"),
    "the picture": (r"open .*loss\.png", "full", r"loss\.png.*is complete"),
}


@pytest.mark.parametrize("case", QUICK)
def test_a_disk_that_fills_up_is_one_line_and_nothing_is_lost(lab, tmp_path, case):
    (pattern, how, message), run, whole = QUICK[case], tmp_path / "run", lab.whole()
    reply = lab.train(run, at=number(lab.points, pattern), how=how)
    assert reply["code"] == 2, reply["said"]
    lines = reply["said"].strip().splitlines()
    assert "Traceback" not in reply["said"]
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], reply["said"]
    remedies = (
        f"What was saved before is whole: free space, then lorada train --resume --output {run}",
        "Free space, then run the command again",
        f"The run itself is complete: lorada evaluate {run}",
    )
    assert re.match(rf"error: could not save (the weights of )?{run}.*: .+\. ", lines[-1])
    assert lines[-1].endswith(remedies)
    assert re.search(message, lines[-1])
    check_what_is_left(lab, run, whole, reply["steps"])
    check_the_end(lab, run, whole)
