"""Run the comparisons of docs/studies/map.md and atlas.md one by one; finished ones are kept.

    python studies/trained/rows.py --data-dir DATA rows
    python studies/trained/run.py rows study --workers 2

Interrupted, the same command goes on. ``--only syllogism_sizes`` runs one of them, and ``--show``
prints their commands instead.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

# LoRA of rank 1 scales its change by alpha / r = 2. With alpha = 0 only the task head learns.
LORA_1 = "r=1:lora_alpha=2"
HEAD = "lora:r=1:lora_alpha=0"
LORA, LORA_4 = f"lora:{LORA_1}", "lora:r=4:lora_alpha=8"
MAP = "rank=2:length=96"  # 27,648 parameters: with LoRA of rank 1 as many as LoRA of rank 4
PRINTED = f"lmam:{MAP}"
PRINTED_ON_LORA = f"lora+lmam:{LORA_1}:{MAP}"

FULL_RANK = f"{PRINTED}:ablation=full_rank"
ABLATIONS = tuple(
    f"{PRINTED}:ablation={name}" for name in ("no_negative", "softmax", "no_position")
)
# The second study: a map that starts from the left, beside today's start and beside equal sizes.
LEFT, LEFT_ON_LORA = f"{PRINTED}:init=zero_left", f"{PRINTED_ON_LORA}:init=zero_left"
DORA, DORA_4 = f"dora:{LORA_1}", "dora:r=4:lora_alpha=8"
PRINTED_ON_DORA = f"dora+lmam:{LORA_1}:{MAP}"
LEFT_ON_DORA = f"{PRINTED_ON_DORA}:init=zero_left"
STARTS = (LORA, LORA_4, PRINTED_ON_LORA, LEFT_ON_LORA)  # H5, and H6 on LoRA
ON_DORA, ALONE = (DORA, DORA_4, LEFT_ON_DORA), (HEAD, PRINTED, LEFT)  # H6 on DoRA, H7
WRITER_METHODS = (
    "lora", "dora", "ia3", "lmam", "lora+lmam", "lora+lmam:init=zero_left", "lorada_la",
)  # fmt: skip
# On LoRA's matrices: on all linear layers, no rank that can be pruned fits the budget.
ADALORA = r"adalora:target_modules=.*\.(query|value)"
ATLAS = (
    "lora", "dora", ADALORA, "ia3", "adapter_ffn", "pfeiffer", "bitfit", "lmam", "lora+lmam",
    "lorada_a",
)  # fmt: skip

RATES, LLM_RATES = "7e-4,3e-3,1.2e-2", "3e-4,1.5e-3,7e-3"
MAPS = ("lora+lmam", "lorada_a")  # of these, the map and other parts
ATLAS_TASKS = ("sst2_even", "syllogism", "syllogism8", "knights")
PILOT_TASKS = ("qnli", "stsb", "mrpc")  # of GLUE: is there something to learn in 150 steps?


class Asked(NamedTuple):
    """A comparison: the name of its rows, its methods, learning rates, budget and model."""

    rows: str
    methods: tuple[str, ...]
    rates: str = RATES  # empty: each method's own search
    budget: str | None = None
    model: str = "minilm-l6"
    seeds: str = "1,2,3,4,5"


TEN = "1,2,3,4,5,6,7,8,9,10"
WRITER = Asked("syllogism_written", WRITER_METHODS, LLM_RATES, "0.2%", "smollm2-135m", "1,2,3")
# Of the second study. At its time every seed searched its own learning rate, but for `writers`:
# commit b637d54d is the last that does.
SECOND = {
    "syllogism_starts": Asked("syllogism", STARTS, seeds=TEN),
    "sst2_even_starts": Asked("sst2_even", STARTS),
    "syllogism_alone": Asked("syllogism", ALONE),
    "sst2_even_alone": Asked("sst2_even", ALONE),
    "syllogism_dora": Asked("syllogism", ON_DORA, seeds=TEN),
    "syllogism8_starts": Asked("syllogism8", STARTS, seeds=TEN),
    "sst2_even_dora": Asked("sst2_even", ON_DORA),
    "qnli_starts": Asked("qnli", STARTS),
}
COMPARISONS = {
    **SECOND,
    "writers": WRITER,
    **{f"pilot_{t}": Asked(t, ("lora",), budget="0.2%", seeds="1") for t in PILOT_TASKS},
}
# Of the third study and the atlas: every rate is searched, that of a map too.
ON_LORA, ON_DORA_TOO = (LORA, LORA_4, PRINTED_ON_LORA), (DORA, DORA_4, PRINTED_ON_DORA)
COMPARISONS |= {
    "sst2_even_sizes": Asked("sst2_even", ON_LORA, rates=""),
    "syllogism_sizes": Asked("syllogism", ON_LORA, rates="", seeds=TEN),
    "syllogism8_sizes": Asked("syllogism8", ON_LORA, rates="", seeds=TEN),
    "sst2_even_dora_sizes": Asked("sst2_even", ON_DORA_TOO, rates=""),
    "syllogism_dora_sizes": Asked("syllogism", ON_DORA_TOO, rates="", seeds=TEN),
    "syllogism_ablations": Asked("syllogism", (PRINTED, *ABLATIONS), rates="", seeds=TEN),
    # Its own comparison, made when the full rank had got the zero start of the printed map.
    "syllogism_full_rank": Asked("syllogism", (PRINTED, FULL_RANK), rates="", seeds=TEN),
    **{f"atlas_{task}": Asked(task, ATLAS, rates="", budget="0.2%") for task in ATLAS_TASKS},
    **{f"atlas_{task}_full": Asked(task, ("full",), rates="") for task in ATLAS_TASKS},
    # Of the first atlas every seed has searched its rate, but for that of maps beside other parts.
    **{f"atlas_{t}_maps": Asked(t, MAPS, rates="", budget="0.2%") for t in ATLAS_TASKS[:2]},
}
COMMON = (
    "per_device_train_batch_size=16", "logging_steps=10",
    "train_sampling_strategy=group_by_length",
    "bf16=true", "use_cpu=true",  # matrix products in bfloat16, weights and scoring in float32
)  # fmt: skip
SETTINGS = {
    "minilm-l6": ("pooling=mean", "max_length=96", "max_steps=150", "warmup_steps=15"),
    "smollm2-135m": ("max_length=96", "max_steps=24", "warmup_steps=3", "max_new_tokens=4"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path, help="folder of rows.py")
    parser.add_argument("output", type=Path, help="folder for the comparisons")
    parser.add_argument("--only", choices=COMPARISONS, help="run one of them")
    parser.add_argument("--workers", default="1")
    parser.add_argument("--show", action="store_true", help="print the commands")
    given = parser.parse_args()
    for name in [given.only] if given.only else COMPARISONS:
        words = command(name, given.rows, given.output / name, given.workers)
        print(shlex.join(words), flush=True)
        if not given.show:
            subprocess.run([sys.executable, "-m", "lorada.cli", *words[1:]], check=True)


def command(name: str, rows: Path, folder: Path, workers: str) -> list[str]:
    """The words of one comparison; an existing folder is resumed."""
    if (folder / "comparison.yaml").is_file():
        return ["lorada", "compare", str(folder), "--resume", "--workers", workers]
    asked = COMPARISONS[name]
    train, held_out = (f"{rows}/{asked.rows}_{part}.jsonl" for part in ("train", "test"))
    return [
        "lorada", "compare", "--model", asked.model, "--data", train, "--held-out", held_out,
        "--methods", ",".join(asked.methods), *(["--budget", asked.budget] if asked.budget else []),
        "--seeds", asked.seeds, *(["--rates", asked.rates] if asked.rates else []),
        "--output", str(folder),
        "--workers", workers, *SETTINGS[asked.model], *COMMON,
    ]  # fmt: skip


if __name__ == "__main__":
    main()
