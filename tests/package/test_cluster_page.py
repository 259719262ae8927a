"""The scripts of docs/compare.md for clusters: what they call; and Ray takes the cluster file."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from paths import ROOT

PAGE = (ROOT / "docs/compare.md").read_text(encoding="utf-8").split("\n## Several processors")[1]
SCRIPTS = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.S)
STUB = '#!/bin/sh\nprintf "%s\\n" "$(basename "$0")" "$@" >> "$SAID"\n'


def said(script, folder):
    """What a script calls, a word a line, with stand-ins for the programs."""
    for name in ("lorada", "ray", "sbatch"):
        (folder / name).write_text(STUB + ("echo 77\n" if name == "sbatch" else ""))
        (folder / name).chmod(0o755)
    variables = {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "SAID": str(folder / "said"),
        "SLURM_ARRAY_TASK_ID": "3",
    }  # fmt: skip
    done = subprocess.run(["bash", "-eu", "-c", script], env=variables, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    return (folder / "said").read_text().splitlines()


@pytest.mark.parametrize("number", range(len(SCRIPTS)))
def test_a_script_of_the_page_calls_what_it_says(number, tmp_path):
    words = said(SCRIPTS[number], tmp_path)
    assert words
    if number == 1:  # a part of the array runs its own jobs
        assert (words[:2], words[-2:]) == (["lorada", "compare"], ["--shard", "3/4"])
        assert "#SBATCH --array=1-4\n" in SCRIPTS[1]
    if number == 2:  # the last job waits for all parts
        assert "--dependency=afterany:77" in words
        assert words[-1] == "lorada compare comparison --resume"


def test_ray_takes_the_cluster_file():
    ray = pytest.importorskip("ray", reason="needs the extra `cluster`")
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    (file,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.S)
    jsonschema.validate(yaml.safe_load(file), schema)
