"""``serving/steps.py``: the steps that are timed."""

import torch
from exact_cells import adapted
from serving import steps
from serving.load import Load

from lorada.inference.serving.served import SharedModel
from lorada.tuners.lmam import LmamLayer


def test_every_pass_is_computed_without_the_map_with_it_and_without_it():
    shared = SharedModel(adapted("llama", "map"))
    maps = [module for module in shared.base.modules() if isinstance(module, LmamLayer)]
    model = steps.InTurns(shared, "default", steps._map_switch(maps))
    seen = []
    shared.base.register_forward_hook(
        lambda *args: seen.append((len(maps[0].maps()), args[2].logits.clone()))
    )
    load = Load(3, 2, read=(4, 7), write=(2, 4), tokens=(5, 20))
    with torch.no_grad():
        measured = steps._round(model, load, 0)
    assert measured["tokens_per_second"] > 0
    assert all(second > 0 for second in model.seconds)
    numbers, logits = zip(*seen, strict=True)
    assert numbers == (0, 1, 0) * (len(seen) // 3)
    passes = list(zip(logits[::3], logits[1::3], logits[2::3], strict=True))
    assert all(torch.equal(first, third) for first, _, third in passes)
    # The first pass reads prompts, which are under the map; later tokens may be past it.
    assert not torch.equal(*passes[0][:2])
