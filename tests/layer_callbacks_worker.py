"""One training with IST or OwLore, in as many processes as ``accelerate launch`` starts.

    layer_callbacks_worker.py ist|owlore OUTPUT PROCESSES

The batch is 4 rows over all processes. OUTPUT gets ``weights.safetensors``, and of each process
``scores0.json``, ….
"""

import json
import sys
from pathlib import Path

import torch
from callback_runs import trainer_for
from double import in_double
from safetensors.torch import save_file
from test_ist import adapted
from test_owlore import tiny

from lorada.methods.callbacks.ist import ISTCallback
from lorada.methods.callbacks.owlore import OwLoreCallback
from lorada.methods.galore import galore


@in_double()
def main(procedure: str, output: str, processes: int) -> None:
    """Train six steps."""
    torch.set_num_threads(1)
    settings = {
        "per_device_train_batch_size": 4 // processes,
        "ddp_find_unused_parameters": True,
        # Small for GaLore: rounding turns singular vectors that are about equally large, and so
        # Adam's steps.
        "learning_rate": 1e-3 if procedure == "ist" else 1e-5,
        "adam_epsilon": 1e-3,  # else Adam makes whole steps out of gradients that are rounding
    }
    if procedure == "ist":
        model, callback, optimizer = adapted("lora", "lmam"), ISTCallback(every=2), None
    else:
        model, optimizer = tiny(), galore
        callback = OwLoreCallback(layers=2, every=2, threshold=2.0)
    trainer = trainer_for(model, output, callback, optimizer=optimizer, **settings)
    assert trainer.args.world_size == processes
    trainer.train()
    scores = callback.scores if procedure == "ist" else callback.weights
    rank = trainer.args.process_index
    (Path(output) / f"scores{rank}.json").write_text(json.dumps(scores))
    if rank == 0:
        state = {name: p.detach().clone() for name, p in model.named_parameters()}
        save_file(state, Path(output) / "weights.safetensors")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], processes=int(sys.argv[3]))
