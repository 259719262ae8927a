"""Prepares text generation: the languages of a multilingual tokenizer, and a check of lengths."""

from transformers import PreTrainedTokenizerBase


def set_languages(
    tokenizer: PreTrainedTokenizerBase,
    chosen: list[str] | None,
    usual: tuple[str, str] | None,
) -> None:
    """Set a multilingual tokenizer's source and target: the recipe's ``chosen``, else ``usual``."""
    if not hasattr(tokenizer, "tgt_lang"):
        if chosen is not None:
            raise ValueError(f"languages={chosen}: this model's tokenizer has none; leave them out")
        return
    languages = chosen or usual
    if languages is None:
        # Else the tokenizer would make the source its target when it first encodes a target.
        tokenizer.tgt_lang = tokenizer.tgt_lang or tokenizer.src_lang
        return
    for language in languages:
        if language not in tokenizer.get_vocab():
            raise ValueError(
                f"languages={list(languages)}: this model's tokenizer has no {language!r}; pass "
                "languages=[SOURCE,TARGET] as it spells them"
            )
    tokenizer.src_lang, tokenizer.tgt_lang = languages


def language_settings(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Settings of ``generate`` that make a multilingual model write its target language.

    If the language token comes first in the labels, generation is forced to begin with it
    (mBART-50). If it comes last, the decoder starts from it (mBART).
    """
    language = getattr(tokenizer, "tgt_lang", None)
    if language is None:
        return {}
    code = int(tokenizer.convert_tokens_to_ids(language))
    first = tokenizer(text_target="a")["input_ids"][0]
    return {"forced_bos_token_id" if first == code else "decoder_start_token_id": code}


def refuse_long(limit: int, context: int | None) -> None:
    """Refuse to generate more tokens than a decoder has positions for."""
    if context is not None and limit > context:
        raise ValueError(
            f"max_new_tokens={limit} is more than this model can write: pass max_new_tokens="
            f"{context} or less"
        )
