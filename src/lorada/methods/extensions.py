"""EXTENSIONS: methods of this project's own, which METHODS includes; the paper has none of them."""

from lorada.methods.method import Method, Settings

EVERY_FAMILY = ("llama", "roberta", "deberta", "bart")
OURS = "an extension of this project, not of the paper (docs/forms.md)"


def _form(form: str, **settings: int) -> dict[str, dict[str, Settings]]:
    return {family: {"lmam": {"form": form, **settings}} for family in EVERY_FAMILY}


EXTENSIONS: dict[str, Method] = {
    "lmam_distance": Method(
        "a map by distance: a weight for each distance between two tokens",
        _form("distance"),
        formula="softmax(QKᵀ/√d)·V + M·V, M_ij = t[j − i] for visible j within the window",
        source=OURS,
        ours=True,
    ),
    "lmam_content": Method(
        "a map by content: weights that depend on the key",
        _form("content"),
        formula="softmax(QKᵀ/√d)·V + M·V, M_ij = (b·k_j/√d + c)/(visible keys of i)",
        source=OURS,
        ours=True,
    ),
    "lmam_bilinear": Method(
        "a bilinear map: weights that depend on query and key, without a softmax",
        _form("bilinear", rank=2),
        formula="softmax(QKᵀ/√d)·V + M·V, M_ij = (q_i·A)(B·k_j)/√d/(visible keys of i)",
        source=OURS,
        ours=True,
    ),
}
