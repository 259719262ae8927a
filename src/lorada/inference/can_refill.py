"""``can_refill``: whether a refilled batch gives the answers of transformers' ``generate``.

Everything that is not known to is answered by ``generate`` itself, in padded batches.
"""

from typing import Any

from peft import PeftConfig, PeftModel
from transformers.generation import GenerationMixin

from lorada.inference.load import Run
from lorada.runs.models.candidate_scores import accepted
from lorada.runs.models.refilled_cache import can_be_refilled
from lorada.tuners.lmam import map_configs

# Settings that a refilled batch follows, and those that change no greedy answer. Others, such as
# beams, penalties and words that are forced or forbidden, are for ``generate``.
FOLLOWED = {"max_new_tokens", "stop_strings", "eos_token_id"}
WITHOUT_EFFECT = {
    "bos_token_id", "pad_token_id", "max_length", "transformers_version", "_from_model_config",
    "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff",
    "eta_cutoff",
}  # fmt: skip
NEUTRAL = {
    "num_beams": 1, "use_cache": True, "output_attentions": False, "output_hidden_states": False,
}  # fmt: skip


def can_refill(run: Run, settings: dict[str, Any]) -> bool:
    """Whether a run's answers with these settings of ``generate`` may come from a refilled batch.

    It is for decoders whose cache is keys and values of all tokens, with greedy search. Maps with
    ``positions="raw"`` count pads, so an answer depends on how the batch is padded.
    """
    if run.kind != "decoder" or not is_plain_greedy(run, settings):
        return False
    model = run.model
    if isinstance(model, PeftModel):
        if any(needs_peft_generate(config) for config in model.peft_config.values()):
            return False
        model = model.get_base_model()
    prepare = getattr(type(model), "prepare_inputs_for_generation", None)
    return (
        prepare is GenerationMixin.prepare_inputs_for_generation
        and bool(accepted(model, position_ids=None))
        and not any(part.positions == "raw" for part in map_configs(run.model))
        and can_be_refilled(model.config)
    )


def is_plain_greedy(run: Run, settings: dict[str, Any]) -> bool:
    """Whether a run's settings of ``generate`` and these take the likeliest token each time.

    Then a token depends on those before through the model alone.
    """
    settings = run.model.generation_config.to_diff_dict() | settings
    for name, value in settings.items():
        known = name in FOLLOWED | WITHOUT_EFFECT or NEUTRAL.get(name, object()) == value
        if value is not None and not known:
            return False
    limit, ends = settings["max_new_tokens"], settings.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [0 if ends is None else ends]
    # A number of another kind may be damaged, and ``generate`` says so.
    return type(limit) is int and limit > 0 and all(type(end) is int for end in ends)


def needs_peft_generate(config: PeftConfig) -> bool:
    """Whether an adapter needs steps that PEFT takes in its own ``generate``.

    Prompts that are learned do, and adapters that are switched on by tokens.
    """
    parts = getattr(config, "parts", [config])
    return any(
        part.is_prompt_learning or getattr(part, "alora_invocation_tokens", None) for part in parts
    )


def end_tokens(run: Run) -> list[int]:
    """The tokens that end an answer."""
    ends = run.model.generation_config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
