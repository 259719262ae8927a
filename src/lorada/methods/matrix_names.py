"""The names of a model's weight matrices by role, and the family of a model.

The settings in METHODS use one model's names, such as LLaMA's ``q_proj``. Other models have other
names for the same matrices, or one matrix in place of several; ``translate_names``
translates.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lorada.methods.method import Family

# Role → names of the matrices with that role, within a layer. A name is long enough to match no
# other module of the model. Where query, key and value (or gate and up) are one matrix, it is
# listed under each role. Some methods train embeddings and norms, which may be outside the layers.
Scheme = Mapping[str, tuple[str, ...]]
# Settings that name modules: those that the part adapts, and those that train as a whole.
NAMING = ("target_modules", "feedforward_modules", "modules_to_save")
# Key of a method's settings → the model type whose names of matrices they use.
WRITTEN_FOR: dict[str, str] = {
    "llama": "llama", "roberta": "roberta", "deberta": "deberta-v2", "bart": "bart",
}  # fmt: skip


def _scheme(
    attention: tuple[str, str, str] | str,
    output: tuple[str, ...] | str,
    up: tuple[str, ...] | str,
    down: str,
    *,
    gate: str = "",
    trained_whole: tuple[str, tuple[str, ...]] = ("", ()),
) -> Scheme:
    """A scheme without the roles that the model lacks.

    Args:
        attention: query, key and value, or the one matrix of all three.
        output: the output projection of the attention, or several of its kind.
        up: the first matrix of the FFN, or several.
        down: its last matrix.
        gate: the matrix of its gate, if it has one.
        trained_whole: what may be trained whole: the embeddings, and the names of all norms.
    """
    query, key, value = (attention,) * 3 if isinstance(attention, str) else attention
    embeddings, norms = trained_whole
    roles: dict[str, tuple[str, ...] | str] = {
        "query": query, "key": key, "value": value, "output": output, "gate": gate, "up": up,
        "down": down, "embeddings": embeddings, "norms": norms,
    }  # fmt: skip
    return {
        role: (names,) if isinstance(names, str) else names
        for role, names in roles.items()
        if names
    }


_QKV = ("q_proj", "k_proj", "v_proj")
_FAIRSEQ = ("self_attn.out_proj", "encoder_attn.out_proj")  # classifiers have an out_proj, too
_EMBED = "embed_tokens"
_LLAMA = _scheme(
    _QKV, "o_proj", "up_proj", "down_proj", gate="gate_proj", trained_whole=(_EMBED, ("norm",))
)
_BERT_HALVES = ("attention.output.dense", "intermediate.dense", "output.dense")
_BERT = _scheme(
    ("attention.self.query", "attention.self.key", "attention.self.value"), *_BERT_HALVES,
    trained_whole=("word_embeddings", ("LayerNorm",)),
)  # fmt: skip
_BART = _scheme(
    _QKV, _FAIRSEQ, "fc1", "fc2", trained_whole=(_EMBED, ("layer_norm", "layernorm_embedding"))
)
_T5 = _scheme(
    ("q", "k", "v"), "o", ("wi", "wi_1"), "wo", gate="wi_0", trained_whole=(_EMBED, ("layer_norm",))
)

SCHEMES: dict[str, Scheme] = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), _LLAMA
    ),
    "phi": _scheme(
        _QKV, "self_attn.dense", "fc1", "fc2", trained_whole=(_EMBED, ("layernorm",))
    ),
    "phi3": _scheme(
        "qkv_proj", "o_proj", "gate_up_proj", "down_proj", gate="gate_up_proj",
        trained_whole=(_EMBED, ("norm",)),
    ),
    "gpt2": _scheme(
        "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj",
        trained_whole=("wte", ("ln_1", "ln_2", "ln_f")),
    ),
    "gptj": _scheme(
        _QKV, "attn.out_proj", "fc_in", "fc_out", trained_whole=("wte", ("ln_1", "ln_f"))
    ),
    "gpt_neox": _scheme(
        "query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h",
        trained_whole=("embed_in", ("layernorm", "layer_norm")),
    ),
    "opt": _scheme(
        _QKV, "self_attn.out_proj", "fc1", "fc2", trained_whole=(_EMBED, ("layer_norm",))
    ),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra"), _BERT),
    "distilbert": _scheme(
        ("q_lin", "k_lin", "v_lin"), "out_lin", "ffn.lin1", "ffn.lin2",
        trained_whole=("word_embeddings", ("layer_norm", "LayerNorm")),
    ),
    "modernbert": _scheme(
        "attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo", gate="mlp.Wi",
        trained_whole=("tok_embeddings", ("norm",)),
    ),
    "deberta": _scheme("attention.self.in_proj", *_BERT_HALVES),
    "deberta-v2": _scheme(
        ("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
        *_BERT_HALVES,
    ),
    **dict.fromkeys(("bart", "mbart"), _BART),
    "whisper": _scheme(_QKV, _FAIRSEQ, "fc1", "fc2", trained_whole=(_EMBED, ("layer_norm",))),
    "t5": _T5,
    "vit": _scheme(
        _QKV, "o_proj", "fc1", "fc2",
        trained_whole=("patch_embeddings", ("layernorm_before", "layernorm_after", "layernorm")),
    ),
}  # fmt: skip


def family_of(model_config: Any) -> Family:
    """The family of a model, named after the model of the paper that is most like it."""
    # These tables hold names only, so that no model has to be imported.
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    model_type = model_config.model_type
    if getattr(model_config, "is_encoder_decoder", False):
        return "bart"
    # BERT is in the table of causal models because it can be made a decoder.
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and (
        model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        or getattr(model_config, "is_decoder", False)
    ):
        return "llama"
    return "deberta" if model_type == "deberta-v2" else "roberta"


ANY_LAYER = r".*\.\d+"  # begins a regex of the matrices of all layers


def translate_names(names: Sequence[str], source: Scheme, target: Scheme) -> list[str] | str:
    """Translate names of matrices from the scheme ``source`` to the scheme ``target``.

    Roles that the model of ``target`` lacks are left out.

    Returns:
        A value for ``target_modules``: a list, or a regex where one name ends another. BERT's
        ``output.dense`` in a list would match ``attention.output.dense`` too.
    """
    translated: dict[str, None] = {}  # in order, each name once
    for name in names:
        for role in _roles_of(name, source):
            translated |= dict.fromkeys(target.get(role, ()))
    # Names of this very model stay as written if each matches one matrix only.
    if target is source and all(_matches_one(name, target) for name in names):
        return list(names)
    if all(_matches_one(name, target) for name in translated):
        return list(translated)
    return rf"{ANY_LAYER}\.({'|'.join(re.escape(name) for name in translated)})"


def _roles_of(name: str, scheme: Scheme) -> list[str]:
    """The roles of the matrices with a name; if there are none, of those whose names end in it."""
    roles = [role for role, full_names in scheme.items() if name in full_names]
    if roles:
        return roles
    for role, full_names in scheme.items():
        if any(_ends_in(full_name, name) for full_name in full_names):
            roles.append(role)
    if not roles:
        raise ValueError(f"{name} is no matrix that has a role: {', '.join(scheme)}")
    return roles


def _ends_in(full_name: str, name: str) -> bool:
    """Whether a name is that of a module or the end of its path, as PEFT matches targets."""
    return f".{full_name}".endswith(f".{name}")


def _matches_one(name: str, scheme: Scheme) -> bool:
    """Whether a name matches no more than one of a model's matrices."""
    matches = set()
    for full_names in scheme.values():
        matches |= {full_name for full_name in full_names if _ends_in(full_name, name)}
    return len(matches) < 2


def has_linears_of(scheme: Scheme, linear_names: Iterable[str]) -> bool:
    """Whether the linear layers within a model's layers are those of a scheme and no others.

    Only the gate of the scheme may be missing.
    """
    linear_names = list(linear_names)
    # Embeddings and norms are no linear layers.
    needed_roles = [role for role in scheme if role not in ("embeddings", "norms", "gate")]
    for role in needed_roles:
        if not any(_is_any_of(linear_name, scheme[role]) for linear_name in linear_names):
            return False
    known_names: list[str] = []
    for role in (*needed_roles, "gate"):
        known_names += scheme.get(role, ())
    return all(_is_any_of(linear_name, known_names) for linear_name in linear_names)


def _is_any_of(linear_name: str, names: Iterable[str]) -> bool:
    return any(_ends_in(linear_name, name) for name in names)
