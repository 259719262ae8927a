"""What encoder–decoders need beside other models: languages, and scores while they train."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from peft import PeftModel
from transformers import (
    EvalPrediction,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    TrainingArguments,
)

from lorada.runs.data.rows import Rows
from lorada.runs.training.mean_loss import MeanTrainer
from lorada.tasks.metrics import Metrics
from lorada.tasks.rows import HEADED, answer_of
from lorada.tasks.task import Kind


def writes_texts(rows: Rows, kind: Kind) -> bool:
    """Whether the model is an encoder–decoder that is asked for texts."""
    return kind == "encoder_decoder" and rows.form not in HEADED


def set_languages(
    tokenizer: PreTrainedTokenizerBase,
    chosen: list[str] | None,
    usual: tuple[str, str] | None,
) -> None:
    """Tell the tokenizer of a multilingual model from which language to which it goes.

    Args:
        tokenizer: of any model; one that knows no languages stays as it is.
        chosen: source and target, as asked for.
        usual: source and target of the protocol.

    Raises:
        ValueError: for a language that the model does not have.
    """
    if not hasattr(tokenizer, "tgt_lang"):
        if chosen is not None:
            raise ValueError(f"languages={chosen}: this model's tokenizer has none; leave them out")
        return
    languages = chosen or usual
    if languages is None:
        # Otherwise the tokenizer makes the target this when it first meets one, unasked.
        tokenizer.tgt_lang = tokenizer.tgt_lang or tokenizer.src_lang
        return
    for language in languages:
        if language not in tokenizer.get_vocab():
            raise ValueError(
                f"languages={list(languages)}: this model's tokenizer has no {language!r}; pass "
                "languages=[SOURCE,TARGET] as it spells them"
            )
    tokenizer.src_lang, tokenizer.tgt_lang = languages


def beginning(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Settings of ``generate`` that make a multilingual model write its target language.

    Where the language stands first in the labels it is the first token to write (mBART-50); where
    it stands last, the decoder is started with it (mBART).
    """
    language = getattr(tokenizer, "tgt_lang", None)
    if language is None:
        return {}
    code = int(tokenizer.convert_tokens_to_ids(language))
    first = tokenizer(text_target="a")["input_ids"][0]
    return {"forced_bos_token_id" if first == code else "decoder_start_token_id": code}


def refuse_long(limit: int, context: int | None) -> None:
    """Refuse more tokens than a decoder has positions for.

    Raises:
        ValueError: with the number that there are.
    """
    if context is not None and limit > context:
        raise ValueError(
            f"max_new_tokens={limit} is more than this model can write: pass max_new_tokens="
            f"{context} or less"
        )


def scorer(rows: Rows, tokenizer: PreTrainedTokenizerBase) -> Callable[[EvalPrediction], Metrics]:
    """The metrics of held-out rows, from the tokens that a Trainer has had written for them."""

    def score(prediction: EvalPrediction) -> Metrics:
        ids = np.where(prediction.predictions < 0, tokenizer.pad_token_id, prediction.predictions)
        return rows.protocol.score(tokenizer.batch_decode(ids, skip_special_tokens=True), rows.rows)

    return score


def without_writing(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without those of an encoder–decoder that writes, which must not be set."""
    known = TrainingArguments.__dataclass_fields__
    for name, value in settings.items():
        if name not in known and value:
            raise ValueError(
                f"training.{name}={value} is for encoder–decoder models that write "
                "texts: leave it out"
            )
    return {key: value for key, value in settings.items() if key in known}


def measured_names(args: TrainingArguments, held_out: Rows | None) -> list[str]:
    """What is measured on held-out rows while training, beside the loss.

    Raises:
        ValueError: if there are no such rows, or the best model is to be chosen by something else.
    """
    chooses = held_out is not None and held_out.form == "choice"
    measured = ["eval_accuracy"] if chooses else []
    if getattr(args, "predict_with_generate", False):
        if held_out is None:
            raise ValueError(
                "training.predict_with_generate=true needs held-out rows: pass eval_data=FILE or "
                "dev_rows=N"
            )
        row = held_out.rows[:1]
        scored = held_out.protocol.score([answer_of(row[0])], row)  # for their names
        measured = [f"eval_{name}" for name in scored]
    best = args.metric_for_best_model
    if best not in (None, "loss", "eval_loss", *measured, *(m[5:] for m in measured)):
        names = ", ".join(name.removeprefix("eval_") for name in measured)
        raise ValueError(
            f"training.metric_for_best_model={best!r} is not measured while training"
            + (f" ({names} are)" if names else "")
            + ": leave it out, for the held-out loss"
        )
    return measured


class WritingTrainer(MeanTrainer, Seq2SeqTrainer):
    """A Seq2SeqTrainer that has texts written as the protocol says."""

    def __init__(self, *args: Any, generation: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.generation = generation

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The held-out loss and, with ``predict_with_generate``, the metrics."""
        settings = {"do_sample": False, **self.generation}
        if self.args.generation_num_beams is not None:
            settings["num_beams"] = self.args.generation_num_beams
        found: dict[str, float] = super().evaluate(*args, **{**settings, **kwargs})
        return found

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """A step that leaves the model's own settings of generation as they are.

        The Seq2SeqTrainer fills in whatever they lack, which a model would be saved with.
        """
        model = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        kept = copy.deepcopy(model.generation_config)
        try:
            return super().prediction_step(*args, **kwargs)
        finally:
            model.generation_config = kept
