"""The scripts of docs/cluster.md: what they call; and Ray takes the cluster file."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from paths import ROOT

PAGE = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.S)
STUB = '#!/bin/sh\nprintf "%s\\n" "$(basename "$0")" "$@" >> "$SAID"\n'


def said(script, folder):
    """What a script calls, a word a line, with stand-ins for the programs."""
    for name in ("lorada", "ray", "sbatch"):
        (folder / name).write_text(STUB)
        (folder / name).chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    variables = {"PATH": path, "SAID": str(folder / "said")}
    done = subprocess.run(["bash", "-eu", "-c", script], env=variables, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    return (folder / "said").read_text().splitlines()


@pytest.mark.parametrize("number", range(len(SCRIPTS)))
def test_a_script_of_the_page_calls_what_it_says(number, tmp_path):
    words = said(SCRIPTS[number], tmp_path)
    assert words
    if number == 1:  # every task of the array has the same command
        assert words[:2] == ["sbatch", "--array=1-4"]
        assert words[-2] == "--wrap"
        inner = said(words[-1], tmp_path)[len(words) :]
        assert (inner[:2], inner[-1]) == (["lorada", "compare"], "--resume")


def test_ray_takes_the_cluster_file():
    ray = pytest.importorskip("ray", reason="needs the extra `cluster`")
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    (file,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.S)
    jsonschema.validate(yaml.safe_load(file), schema)
