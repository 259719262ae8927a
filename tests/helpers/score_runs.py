"""Run as a program: score runs in a process of its own, and print the metrics as JSON.

python score_runs.py ROWS RUN [RUN …]
"""

import json
import sys
from pathlib import Path

import torch

from lorada.inference.evaluate import evaluate
from lorada.inference.load import load_run


def main() -> None:
    torch.set_num_threads(1)
    rows, *runs = sys.argv[1:]
    print(json.dumps({run: evaluate(load_run(Path(run)), rows) for run in runs}))


if __name__ == "__main__":
    main()
