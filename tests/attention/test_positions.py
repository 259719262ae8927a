"""``locate`` against a twin that simply writes down which token every slot and row holds.

Columns are the places of the padded matrix; a cache shows attention some of them as key slots.
"""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask

from lorada.attention import positions as locating
from lorada.attention.call import AttentionCall, CallShape
from lorada.attention.forward_inputs import ForwardInputs
from lorada.attention.positions import NO_TOKEN, TokenTable

EXAMPLES = settings(deadline=None, max_examples=80)
CPU = torch.device("cpu")
Token = int | None  # the index of a token within its sample; None for a pad or an empty slot


@dataclass(frozen=True)
class Scene:
    """One attention call on a padded batch, spelled out.

    Attributes:
        rows: for each sample, the token in every column of the padded matrix.
        seen: columns processed so far, this call's included.
        queries: T; the queries are the last T of them.
        first_column: the column that key slot 0 holds.
        key_len: K; slots past ``seen`` are empty.
        window: in columns.
    """

    rows: list[list[Token]]
    seen: int
    queries: int
    first_column: int
    key_len: int
    window: int | None

    @property
    def query_columns(self) -> range:
        return range(self.seen - self.queries, self.seen)

    def token(self, sample: int, column: int) -> Token:
        return self.rows[sample][column] if column < self.seen else None

    def slots(self, sample: int) -> list[Token]:
        columns = range(self.first_column, self.first_column + self.key_len)
        return [self.token(sample, column) for column in columns]

    def mask(self, form: str) -> torch.Tensor | None:
        """The mask that transformers would hand over: (B, K), or (B, 1, T, K) bool or additive."""
        if form == "none":
            return None
        slots = [[token is not None for token in self.slots(i)] for i in range(len(self.rows))]
        keys = torch.tensor(slots)
        if form == "2d":
            return keys.long()
        query = torch.tensor(list(self.query_columns))[:, None]
        distance = query - (torch.arange(self.key_len) + self.first_column)
        see = (distance >= 0) & (distance < (self.window or 10**6))
        mask = (see & keys[:, None])[:, None]
        return mask if form == "bool" else torch.where(mask, 0.0, torch.finfo(torch.float32).min)

    def position_ids(self) -> torch.Tensor:
        """As `generate` makes them: token indices, and 0 for pads."""
        return torch.tensor([[row[c] or 0 for c in self.query_columns] for row in self.rows])


def locate(
    queries: int,
    keys: int,
    mask: object,
    position_ids: torch.Tensor | None,
    *,
    length: int,
    align: str = "start",
    window: int | None = None,
    cu_seq_lens: tuple[torch.Tensor, torch.Tensor] | tuple[None, None] = (None, None),
    seen: torch.Tensor | int | None = None,
    flash: bool = False,
    device: torch.device = CPU,
) -> TokenTable:
    """``locate`` of a decoder's call, from the little that it reads."""
    module, (by_query, by_key) = torch.nn.Module(), cu_seq_lens
    module.config = SimpleNamespace(_attn_implementation="flash_attention_2" if flash else "sdpa")
    call = AttentionCall(
        module,
        CallShape(queries, keys, 1, True, window),
        torch.empty(0, device=device),
        mask,
        ForwardInputs(tokens_so_far=seen),
        {"position_ids": position_ids, "cu_seq_lens_q": by_query, "cu_seq_lens_k": by_key},
    )
    found = locating.locate(call).table(queries, keys, device)
    return found.at_end(length) if align == "end" else found


def padded(left: int, tokens: int, right: int) -> list[Token]:
    return [None] * left + list(range(tokens)) + [None] * right


@st.composite
def batches(draw: st.DrawFn, sides: tuple[str, ...]) -> list[list[Token]]:
    width = draw(st.sampled_from([1, 3, 5, 7, 9]))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        left = draw(st.integers(0, width - 1)) if "left" in sides else 0
        right = draw(st.integers(0, width - 1 - left)) if "right" in sides else 0
        rows.append(padded(left, width - left - right, right))
    return rows


@st.composite
def whole(draw: st.DrawFn) -> Scene:
    """Training or prefill: T = K, pads on either side or both."""
    rows = draw(batches(draw(st.sampled_from([(), ("left",), ("right",), ("left", "right")]))))
    window = draw(st.none() | st.integers(1, 9))
    return Scene(rows, len(rows[0]), len(rows[0]), 0, len(rows[0]), window)


@st.composite
def chunks(draw: st.DrawFn) -> tuple[list[list[Token]], int, int]:
    """Rows with pads on the left, the columns processed so far and how many of them are queries."""
    rows = draw(batches(draw(st.sampled_from([(), ("left",)]))))
    seen = draw(st.sampled_from(range(1, len(rows[0]) + 1)))
    return rows, seen, draw(st.just(1) | st.sampled_from(range(1, seen + 1)))


@st.composite
def cached(draw: st.DrawFn) -> Scene:
    """A decoding step or a later chunk of a prefill.

    The cache grows, or has a fixed size and an empty tail.
    """
    rows, seen, queries = draw(chunks())
    return Scene(rows, seen, queries, 0, seen + draw(st.just(0) | st.integers(1, 4)), None)


@st.composite
def static_prefill(draw: st.DrawFn) -> Scene:
    """The first call on a cache of fixed size, with pads on the right."""
    rows = draw(batches(("right",)))
    seen = len(rows[0])
    return Scene(rows, seen, seen, 0, seen + draw(st.integers(1, 4)), None)


@st.composite
def sliding(draw: st.DrawFn) -> Scene:
    """A cache that keeps only what the window of the oldest query still reaches."""
    rows, seen, queries = draw(chunks())
    window = draw(st.integers(2, 6))
    dropped = max(seen - queries - window + 1, 0)
    fixed = draw(st.booleans()) and seen < window
    key_len = window if fixed else seen - dropped
    # On a full cache, a sample that has not begun yet has pads for queries: nobody reads those.
    assume(key_len < window or all(row[seen - 1] is not None for row in rows))
    return Scene(rows, seen, queries, dropped, key_len, window)


def check(
    scene: Scene, form: str, length: int, align: str, position_ids: torch.Tensor | None, **told
) -> None:
    table = locate(
        scene.queries, scene.key_len, scene.mask(form), position_ids,
        length=length, align=align, window=scene.window, **told,
    )  # fmt: skip
    for i, row in enumerate(scene.rows):
        count = sum(token is not None for token in row[: scene.seen])
        asked = [scene.token(i, column) for column in scene.query_columns]
        for found, tokens in ((table.columns, scene.slots(i)), (table.rows, asked)):
            expected = [None if token is None else (0, token) for token in tokens]
            found = found.expand(len(scene.rows), -1)[i]
            assert found.tolist() == map_numbers(expected, [count], length, align)


def map_numbers(places: list, counts: list[int], length: int, align: str) -> list[int]:
    """The map column or row of each (sequence, token), None for a pad; tokens of each sequence."""
    shifts = [count - length if align == "end" else 0 for count in counts]
    return [NO_TOKEN if at is None else at[1] - shifts[at[0]] for at in places]


LENGTHS = st.sampled_from([1, 3, 5, 7, 9])
ALIGNS = st.sampled_from(["start", "end"])
FORMS = pytest.mark.parametrize("form", ["bool", "additive"])
ANY_FORM = pytest.mark.parametrize("form", ["bool", "additive", "2d"])


@ANY_FORM
@settings(EXAMPLES, max_examples=240)
@given(
    scene=whole() | cached() | static_prefill(),
    length=LENGTHS,
    align=ALIGNS,
    numbers=st.sampled_from(["of tokens", "of slots", "not given"]),
)
def test_tokens_are_found_in_a_padded_batch_and_behind_a_cache(form, scene, length, align, numbers):
    assume(form != "2d" or scene.key_len == scene.seen)  # such a mask shows no empty slots
    positions = scene.position_ids()
    if scene.queries == scene.key_len:  # only behind a cache must they count tokens
        positions = {"of slots": torch.arange(scene.queries)[None], "not given": None}.get(
            numbers, positions
        )
    check(scene, form, length, align, positions)


@FORMS
@EXAMPLES
@given(scene=sliding(), length=LENGTHS, align=ALIGNS)
def test_tokens_behind_a_sliding_cache_that_dropped_keys_are_found(form, scene, length, align):
    check(scene, form, length, align, scene.position_ids())
    # Where the number of tokens is told, positions may be slots, or count from anywhere.
    count = [sum(t is not None for t in row[: scene.seen]) for row in scene.rows]
    slots = torch.arange(scene.seen - scene.queries, scene.seen)[None] + 7
    check(scene, form, length, align, slots, seen=torch.tensor(count))


@EXAMPLES
@given(whole() | cached() | sliding(), LENGTHS, ALIGNS)
def test_without_a_mask_every_column_is_a_token(scene, length, align):
    assume(all(token is not None for row in scene.rows for token in row))
    # One query on half-empty slots never comes without a mask.
    assume(scene.queries > 1 or scene.key_len == scene.seen - scene.first_column)
    # A windowed layer gets no mask only while no key is out of sight.
    assume(scene.window is None or scene.key_len == scene.seen - scene.first_column)
    full = scene.key_len == scene.seen - scene.first_column
    # Without a mask, a later chunk comes under a flash kernel, and half-empty slots at the start.
    assume(full or scene.queries == scene.seen)
    for positions in (scene.position_ids(), scene.position_ids() + 5, None):
        check(scene, "none", length, align, positions, seen=scene.seen, flash=full)


@pytest.mark.parametrize("masked", [False, True])
def test_a_number_of_tokens_gives_an_answer_on_the_device_of_the_call(masked):
    meta = torch.device("meta")
    mask = torch.ones(1, 1, 1, 4, dtype=torch.bool, device=meta) if masked else None
    table = locate(1, 4, mask, None, length=9, window=4, seen=7, device=meta)
    assert table.columns.device == table.rows.device == meta


@pytest.mark.parametrize(
    "mask", [torch.ones(2, 3, 3), torch.ones(3), object()], ids=["3d", "1d", "object"]
)
def test_mask_of_an_unknown_form_is_an_error(mask):
    with pytest.raises(ValueError, match="unknown form"):
        locate(3, 3, mask, None, length=2)


SEQUENCES = st.lists(st.integers(1, 6), min_size=2, max_size=4)


def check_packed(table, keys: list[tuple], queries: list[tuple], length: int, align: str) -> None:
    """``keys`` and ``queries``: the (sequence, token) in each slot and row, None for a pad."""
    counts = [0] * table.sequences
    for sequence, token in filter(None, keys):
        counts[sequence] = max(counts[sequence], token + 1)
    for found, owners, places in (
        (table.columns, table.column_owner, keys),
        (table.rows, table.row_owner, queries),
    ):
        assert found[0].tolist() == map_numbers(places, counts, length, align)
        owned = zip(owners[0].tolist(), places, strict=True)
        assert all(at is None or at[0] == owner for owner, at in owned)


@EXAMPLES
@given(SEQUENCES, st.integers(0, 3), LENGTHS, ALIGNS, st.none() | st.integers(1, 6), st.booleans())
def test_sequences_packed_into_a_row_are_told_apart_by_position_ids(
    sizes, pads, length, align, window, offset
):
    packed = [(i, token) for i, size in enumerate(sizes) for token in range(size)]
    keys = packed + [None] * pads
    start = 3 if offset else 0  # some count from another number than 0
    position_ids = torch.tensor([[at[1] + start if at else 0 for at in keys]])
    see = torch.tensor(
        [[q is not None and k is not None and q[0] == k[0] and 0 <= q[1] - k[1] < (window or 99)
          for k in keys] for q in keys]
    )  # fmt: skip
    masks = [see[None, None], torch.where(see, 0.0, -3e38)[None, None]]
    for mask in masks if pads else [None, *masks]:
        table = locate(
            len(keys), len(keys), mask, position_ids, length=length, align=align, window=window
        )
        check_packed(table, keys, keys, length, align)


@st.composite
def batched_continuously(
    draw: st.DrawFn, sequences: st.SearchStrategy[list[int]]
) -> tuple[list[int], list[int], list[int], int | None]:
    """Tokens seen, queries and keys kept of each sequence, and the window that dropped the rest."""
    seen = draw(sequences)
    queries = [draw(st.sampled_from([1, size, draw(st.integers(1, size))])) for size in seen]
    window = draw(st.none() | st.integers(2, 4))
    reach = 99 if window is None else window - 1
    kept = [min(size, q + reach) for size, q in zip(seen, queries, strict=True)]
    return seen, queries, kept, window


@EXAMPLES
@given(batched_continuously(SEQUENCES), st.integers(0, 2), st.integers(0, 2), LENGTHS, ALIGNS)
def test_sequences_of_given_lengths_are_told_apart_behind_caches(
    batch, unused, empty, length, align
):
    seen, queries, kept, window = batch
    keys = [(i, t) for i, size in enumerate(seen) for t in range(size - kept[i], size)]
    rows = [(i, t) for i, size in enumerate(seen) for t in range(size - queries[i], size)]
    rows += [None] * unused  # queries beyond the last sequence, as static shapes have them
    keys += [None] * unused
    cu_seq_lens = tuple(
        torch.tensor([0, *sizes, *[0] * empty]).cumsum(0).int() for sizes in (queries, kept)
    )
    position_ids = torch.tensor([[at[1] if at else 0 for at in rows]])
    table = locate(
        len(rows), len(keys), torch.ones(1, 1, len(rows), len(keys)), position_ids,
        length=length, align=align, window=window, cu_seq_lens=cu_seq_lens,
    )  # fmt: skip
    assert table.sequences == len(seen) + empty
    check_packed(table, keys, rows, length, align)


@pytest.mark.parametrize("with_mask", [True, False], ids=["mask", "no-mask"])
def test_unknown_positions_behind_a_window_that_dropped_keys_are_an_error(with_mask):
    mask = torch.ones(1, 1, 1, 4, dtype=torch.bool) if with_mask else None
    with pytest.raises(ValueError, match="position_ids"):
        locate(1, 4, mask, None, length=6, window=4)


# What a call says of itself: of two samples with two queries behind three cached keys.

QUERIES, KEYS = 2, 5


def read(mask=None, implementation: str | None = "sdpa", own=None, **kwargs) -> AttentionCall:
    """Such a call; ``own`` is what its module says of whether it is causal."""
    module = nn.Module()
    module.config = SimpleNamespace(_attn_implementation=implementation)
    if own is not None:
        module.is_causal = own
    query, key = torch.zeros(2, 4, QUERIES, 3), torch.zeros(2, 2, KEYS, 3)
    return AttentionCall.read(module, (query, key, key), mask, kwargs)


def test_a_module_knows_better_than_its_call_whether_it_is_causal():
    assert read().shape.causal
    assert read(own=True).shape.causal
    assert not read(own=False).shape.causal
    assert read(own=True, is_causal=False).shape.causal
    assert not read(is_causal=False).shape.causal


@pytest.mark.parametrize(
    ("implementation", "kernel"),
    [
        (None, "eager"),
        ("sdpa", "sdpa"),
        ("paged|sdpa", "sdpa"),
        ("paged|eager", "eager"),
        ("flash_attention_2", "flash"),
        ("paged|flash_attention_2", "flash"),
        ("kernels-community/flash-attn3", "flash"),
        ("flex_attention", "flex"),
    ],
)
def test_an_implementation_belongs_to_a_kernel(implementation, kernel):
    assert read(implementation=implementation).kernel == kernel


SEEN = torch.tensor([[[0, 1, 1, 1, 0], [0, 1, 1, 1, 1]], [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]]).bool()


def block_mask() -> object:
    def pattern(sample: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return SEEN[sample, query, key]

    return create_block_mask(pattern, 2, None, QUERIES, KEYS, device="cpu")


def additive(hidden: float) -> Tensor:
    """A mask with ``hidden`` at the keys that a query does not see, beside a bias by distance."""
    distance = torch.arange(QUERIES)[:, None] - torch.arange(KEYS)
    return torch.where(SEEN, -100.0 * distance.abs(), hidden)[:, None]


# MarkupLM hides with -10⁴, a model in fp16 with the least number that this has.
HIDING = {"-1e4": -1e4, "fp16": -65504.0, "fp32": torch.finfo(torch.float32).min, "-inf": -math.inf}
MASKS = {
    "block": block_mask(),
    "of a static cache": nn.functional.pad(SEEN, (0, 3))[:, None],
    **{f"hides with {name}": additive(hidden) for name, hidden in HIDING.items()},
}


@pytest.mark.first
@pytest.mark.parametrize("mask", MASKS.values(), ids=list(MASKS))
def test_a_mask_shows_the_keys_that_a_query_sees(mask):
    assert torch.equal(read(mask).visible_keys(), SEEN)


def test_a_mask_of_tokens_may_be_that_of_a_longer_past():
    mask = torch.tensor([[1, 1, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    assert torch.equal(read(mask).visible_keys(), mask[:, None, 2:].bool())


def test_lengths_of_the_queries_alone_are_those_of_the_keys():
    queries, keys = torch.tensor([0, 2]), torch.tensor([0, 5])
    assert read().cu_seq_lens is None
    assert read(cu_seq_lens_q=queries).cu_seq_lens == (queries, queries)
    assert read(cu_seq_lens_q=queries, cu_seq_lens_k=keys).cu_seq_lens == (queries, keys)
