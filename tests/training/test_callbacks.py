"""What the callbacks of every run decide, on made-up states of a training."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from lorada.training.callbacks import (
    DivergedError,
    SaveOnInterrupt,
    refuse_broken,
    refuse_broken_loss,
)


@pytest.fixture
def args(tmp_path):
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
    return TrainingArguments(str(tmp_path), use_cpu=True)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_stops_the_training_at_the_checkpoint_before(args, loss):
    state = TrainerState(global_step=4)
    refuse_broken_loss(torch.tensor(3.0), args, state)
    # The weights of checkpoint-4 gave this loss.
    with pytest.raises(DivergedError, match=f"became {loss} at step 5; .* is .*checkpoint-2[.]"):
        refuse_broken_loss(torch.tensor(loss), args, state)


def test_a_weight_that_is_not_finite_stops_the_training_at_the_checkpoint_before(args):
    layer = nn.Linear(2, 2)
    refuse_broken(layer, args, TrainerState(global_step=4))
    layer.weight.data[1, 1] = float("inf")
    with pytest.raises(DivergedError, match=r"weight is not finite .* 4; .*checkpoint-2[.]"):
        refuse_broken(layer, args, TrainerState(global_step=4))
    layer.weight.requires_grad = False  # a base's may be anything
    refuse_broken(layer, args, TrainerState(global_step=4))


def test_ctrl_c_ends_the_training_after_the_step_with_all_that_goes_on(args):
    callback, control = SaveOnInterrupt(), TrainerControl()
    args.save_only_model = True
    callback.on_step_end(args, SimpleNamespace(), control)
    assert not control.should_save
    assert not control.should_training_stop
    callback._handle(2, None)
    callback.on_step_end(args, SimpleNamespace(), control)
    assert callback.interrupted
    assert control.should_save
    assert control.should_training_stop
    assert not args.save_only_model
    with pytest.raises(KeyboardInterrupt):  # the second
        callback._handle(2, None)
