"""The scripts of docs/compare.md for clusters: what they call; and Ray takes the cluster file."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from paths import ROOT

from lorada.cli.queue_options import check_queue

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
def test_a_script_of_the_page_is_a_shell_script(number, tmp_path):
    assert said(SCRIPTS[number], tmp_path)


def test_the_options_for_gpus_are_those_of_the_command(tmp_path):
    parts = [*re.findall(r"--gpus-per-job (\S+)", SCRIPTS[0])]
    assert [check_queue("auto", float(part), None, None)[1] for part in parts] == [None, None]


def test_a_part_of_the_array_runs_its_own_jobs(tmp_path):
    words = said(SCRIPTS[1], tmp_path)
    assert words[:2] == ["lorada", "compare"]
    assert words[-2:] == ["--shard", "3/4"]
    assert "#SBATCH --array=1-4\n" in SCRIPTS[1]


def test_the_last_job_waits_for_all_parts(tmp_path):
    words = said(SCRIPTS[2], tmp_path)
    assert "--dependency=afterany:77" in words
    assert words[-1] == "lorada compare comparison --resume"


def test_ray_takes_the_cluster_file():
    ray = pytest.importorskip("ray", reason="needs the extra `cluster`")
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    (file,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.S)
    jsonschema.validate(yaml.safe_load(file), schema)
