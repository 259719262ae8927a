"""Measures a few training steps of each candidate, for ``lorada compare --dry-run``."""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorada.experiments import own_process
from lorada.experiments.compare.jobs import RUNS, comparison_jobs
from lorada.experiments.compare.plan import Candidate, Plan
from lorada.experiments.compare.spec import Comparison
from lorada.experiments.queue.simulate import makespan
from lorada.runs.data.rows import Rows
from lorada.runs.folder.result import peak_memory
from lorada.runs.prepare import prepare_training
from lorada.runs.recipe import Recipe
from lorada.runs.training.setup import set_up
from lorada.support.progress import only_reports

STEPS = 3  # the first one is not counted, because it is slower than those after it
