"""The callback that logs the relative norm of maps while a model trains."""

import gc
import logging
from unittest.mock import Mock

import pytest
from callback_runs import trainer
from peft import LoraConfig
from transformers import Trainer

from lorada import LmamConfig, LoradaConfig, RelativeNorm
from lorada.attention import observation

pytestmark = pytest.mark.fp64


def trained(tmp_path, config):
    effect = RelativeNorm()
    run = trainer(config, tmp_path, effect, max_steps=4, logging_steps=2)
    run.train()
    return effect, run.state.log_history


def test_every_log_line_of_a_plain_trainer_has_the_relative_norm(tmp_path):
    stack = LoradaConfig(parts=[LmamConfig(length=6), LoraConfig(target_modules=["q_proj"])])
    effect, history = trained(tmp_path, stack)
    lines = [entry for entry in history if "loss" in entry]
    assert [entry["step"] for entry in lines] == [2, 4]
    assert all(entry["relative_norm"] > 1e-4 for entry in lines)
    assert len(effect.by_layer) == 2
    assert lines[-1]["relative_norm"] == pytest.approx(effect.mean)


@pytest.mark.more
def test_a_map_that_does_nothing_is_said_to_and_one_that_works_is_not(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="lorada.training.callbacks"):
        trained(tmp_path, LmamConfig(length=6))
        assert not caplog.text
        trained(tmp_path, LmamConfig(length=6, inverse_scale=4096 * 600))
    assert "numerically nothing" in caplog.text


@pytest.mark.more
def test_a_training_that_was_given_up_is_not_observed_on(tmp_path, monkeypatch):
    monkeypatch.setattr(observation, "observers", [])
    monkeypatch.setattr(Trainer, "compute_loss", Mock(side_effect=RuntimeError("given up")))
    with pytest.raises(RuntimeError, match="given up"):
        trained(tmp_path, LmamConfig(length=6))
    gc.collect()
    assert observation.observers == []
