"""Whether a refilled batch gives the answers of transformers' ``generate``.

Only models and settings that are known to give the same tokens pass. For others ``generate`` writes
the answers itself, in padded batches, and ``lorada serve`` refuses the run.
"""

from typing import Any

from peft import PeftModel
from transformers.generation import GenerationMixin

from lorada.data.tokenize import learned_ends
from lorada.inference.load import Run
from lorada.training.models.candidate_scores import accepted
from lorada.training.models.refilled_cache import can_be_refilled
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


def reason_against(run: Run, settings: dict[str, Any]) -> str | None:
    """Why answers with these settings may not come from a refilled batch; None if they may.

    It is for decoders whose cache is keys and values of all tokens, with greedy search. Maps with
    ``positions="raw"`` count pads, so an answer depends on how the batch is padded.
    """
    if run.kind != "decoder":
        return "it is an encoder–decoder"
    model, maps = run.model, map_configs(run.model)
    if isinstance(model, PeftModel):
        config = model.peft_config[run.key]
        for part in getattr(config, "parts", [config]):
            # Learned prompts, and adapters that tokens switch on, are steps of PEFT's ``generate``.
            if part.is_prompt_learning or getattr(part, "alora_invocation_tokens", None):
                return f"PEFT generates with its {part.peft_type.value} in a way of its own"
        model, maps = model.get_base_model(), map_configs(model, run.key)
    if any(part.positions == "raw" for part in maps):
        return "its map has positions=raw"
    # Only what takes the likeliest token each time is followed.
    settings = run.model.generation_config.to_diff_dict() | settings
    for name, value in settings.items():
        known = name in FOLLOWED | WITHOUT_EFFECT or NEUTRAL.get(name, object()) == value
        if value is not None and not known:
            return f"it generates with {name}={value}"
    limit, ends = settings["max_new_tokens"], settings.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [0 if ends is None else ends]
    # A number of another kind may be damaged, and ``generate`` says so.
    if type(limit) is not int or limit < 1 or any(type(end) is not int for end in ends):
        return f"it generates with max_new_tokens={limit} and eos_token_id={ends}"
    prepare = getattr(type(model), "prepare_inputs_for_generation", None)
    if (
        prepare is not GenerationMixin.prepare_inputs_for_generation
        or not accepted(model, position_ids=None)
        or not can_be_refilled(model.config)
    ):
        return f"{type(model).__name__} has inputs or a cache of its own"
    return None


def end_tokens(run: Run) -> list[int]:
    """The tokens that end an answer: the base's own, and those that the run has learned."""
    ends = run.model.generation_config.eos_token_id
    own = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    return list(dict.fromkeys([*own, *learned_ends(run.form, run.tokenizer)]))
