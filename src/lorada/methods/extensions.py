"""The methods that are extensions of this project and not of the paper, as data.

``table.py`` adds them to METHODS. Each has ``ours=True``, and ``paper`` is empty.
"""

from lorada.methods.method import EVERY_FAMILY, Method

OURS = "an extension of this project, not of the paper"  # marks such a method in a list
SOURCE = f"{OURS} (docs/forms.md)"


EXTENSIONS: dict[str, Method] = {
    "lmam_distance": Method(
        "a map by distance: a weight for each distance between two tokens",
        {family: {"lmam": {"form": "distance"}} for family in EVERY_FAMILY},
        formula="softmax(QKᵀ/√d)·V + M·V, M_ij = t[j − i] for visible j within the window",
        source=SOURCE,
        ours=True,
    ),
    "gain": Method(
        "gains: a learned factor on the output of each attention head",
        {family: {"gain": {"form": "constant"}} for family in EVERY_FAMILY},
        formula="(1 + g_h)·o_h, o_h the output of head h in front of W_o",
        source=SOURCE,
        ours=True,
    ),
    "gain_query": Method(
        "gains that depend on the query of each token",
        {family: {"gain": {"form": "query"}} for family in EVERY_FAMILY},
        formula="(1 + g_h + w_h·q_hi/√d)·o_hi, o_hi the output of head h for token i",
        source=SOURCE,
        ours=True,
    ),
}
