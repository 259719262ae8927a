"""The idea of LoRaDA in plain PyTorch: a small learned map beside attention.

    python examples/minimal_lmam.py

Attention weighs the values V of a text by a softmax, whose weights are never negative and which
can only be taught through the queries and keys. The paper (Li et al., "LoRaDA") adds a second set
of weights, the map Attn_s, that is learned as it is: of low rank, with both signs, and the same for
every text.

    Attn_s = s (W_a + PE)(W_b + PE)                                      (Eqs. 6-10)
    O      = (softmax(Q K^T / sqrt(d)) + tile(Attn_s)) V                 (Eqs. 1, 12, 13, 17)
           =  softmax(Q K^T / sqrt(d)) V + tile(Attn_s) V

By the last line nobody needs the softmax itself: its product with V comes from any kernel, and the
map's own product is added to it. The program shows that both lines give the same, and then lets a
map teach a frozen transformer what attention without positions cannot know. The task is made for a
map; what maps do on real tasks is in docs/paper.md.

Shapes: B texts, H heads, T tokens, D numbers in a head; a map has S heads, n tokens and rank r.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


def position_embedding(n):
    """PE(pos) = 10000^(-2 pos / n), from 1 at the first token down to almost 0 (Eq. 7)."""
    return 10000.0 ** (-2.0 * torch.arange(n) / n)


def low_rank_map(w_a, w_b, s=1.0):
    """Attn_s (S, n, n) from the factors W_a (S, n, r) and W_b (S, r, n)  (Eqs. 8-10)."""
    pe = position_embedding(w_a.shape[1])
    return s * (w_a + pe[:, None]) @ (w_b + pe)


def fit_to_text(attn_s, heads, tokens):
    """The causal map of every head, (H, T, T), for a text of any length  (Eqs. 11, 14, 15, 17)."""
    n = attn_s.shape[-1]
    # A token sees itself and earlier ones: the lower triangle. The map of an encoder stays whole.
    attn_s = attn_s.tril()
    # A text that is shorter than the map uses its first rows and columns. In a longer one the
    # tokens behind the map get zeros: for them attention is what it was.
    missing = max(tokens - n, 0)
    attn_s = F.pad(attn_s[:, :tokens, :tokens], (0, missing, 0, missing))
    # Fewer maps than heads are tiled: head i uses map i mod S.
    return attn_s.repeat(heads // attn_s.shape[0], 1, 1)


def attention_as_printed(query, key, value, attn_s):
    """The paper's own form: the map is added to the softmax, then both meet V  (Eqs. 1, 12, 13)."""
    heads, tokens, width = query.shape[1:]
    later = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    scores = query @ key.mT / math.sqrt(width)
    attention = scores.masked_fill(later, -math.inf).softmax(-1)
    return (attention + fit_to_text(attn_s, heads, tokens)) @ value


def attention_beside_kernel(query, key, value, attn_s):
    """The same numbers from a fast kernel, which never makes the softmax, and one more product."""
    heads, tokens = query.shape[1:3]
    output = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    return output + fit_to_text(attn_s, heads, tokens) @ value


class Lmam(nn.Module):
    """The adapter of one layer: 2 S n r numbers, whatever the size of the model."""

    def __init__(self, maps, n, rank):
        super().__init__()
        self.w_a = nn.Parameter(torch.randn(maps, n, rank) / math.sqrt(rank))
        # W_b + PE = 0: at first the map is zero, and the model is what it was without it.
        self.w_b = nn.Parameter(-position_embedding(n).repeat(maps, rank, 1))

    def forward(self):
        """Attn_s (S, n, n)."""
        return low_rank_map(self.w_a, self.w_b)


class Transformer(nn.Module):
    """One layer without position embeddings, so attention sees a bag of tokens and no order."""

    def __init__(self, vocabulary, width=64, heads=4):
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(vocabulary, width)
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.predict = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, vocabulary))
        self.lmam = None

    def forward(self, tokens):
        """Tokens (B, T) → the scores of every answer at every token, (B, T, vocabulary)."""
        hidden = self.embed(tokens)
        qkv = self.query_key_value(self.norm(hidden)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        if self.lmam is None:
            output = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            output = attention_beside_kernel(query, key, value, self.lmam())
        hidden = hidden + self.project(output.transpose(1, 2).flatten(2))
        return self.predict(hidden)


# The task: after any number of tokens, say which one stood in the third place.
VOCABULARY, TOKENS, PLACE = 16, 12, 2


def texts(count, generator):
    """Random texts (count, T), and the right answer at each of their tokens, -100 where none."""
    tokens = torch.randint(VOCABULARY, (count, TOKENS), generator=generator)
    answers = tokens[:, PLACE : PLACE + 1].repeat(1, TOKENS)
    answers[:, :PLACE] = -100  # the token to name has not been read yet
    return tokens, answers


def train(model, parameters, steps, rate, generator):
    """Minimise the cross-entropy of the answers over ``parameters`` alone."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    for _ in range(steps):
        tokens, answers = texts(64, generator)
        loss = F.cross_entropy(model(tokens).flatten(0, 1), answers.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model):
    """The share of right answers on texts that were not learned from."""
    tokens, answers = texts(1000, torch.Generator().manual_seed(1))
    known = answers >= 0
    return (model(tokens).argmax(-1) == answers)[known].float().mean().item()


def main():
    """Compare both forms, then teach a frozen transformer with a map."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)

    query, key, value = torch.randn(3, 2, 4, TOKENS, 16)
    attn_s = low_rank_map(torch.randn(2, 8, 2), torch.randn(2, 2, 8))
    printed = attention_as_printed(query, key, value, attn_s)
    difference = (printed - attention_beside_kernel(query, key, value, attn_s)).abs().max()
    print(f"the paper's sum and the term beside the kernel differ by {difference:.0e} at most")

    # All weights learn, but without positions the third token cannot be told from the others.
    model = Transformer(VOCABULARY)
    train(model, model.parameters(), steps=500, rate=3e-3, generator=generator)
    print(f"all weights trained, without a map:  {accuracy(model):.0%} right")

    # Now they are frozen, and the map alone learns where to look.
    model.requires_grad_(False)
    model.lmam = Lmam(maps=2, n=TOKENS, rank=2)
    train(model, model.lmam.parameters(), steps=500, rate=1e-2, generator=generator)
    count = sum(weight.numel() for weight in model.lmam.parameters())
    print(f"frozen, with a map of {count} numbers:    {accuracy(model):.0%} right")

    # Both signs: the third place is raised, and what the softmax brings of the others taken off.
    weights = " ".join(f"{weight:+.1f}" for weight in model.lmam()[0, -1].tolist())
    print(f"what its last row adds to the weight of each token:\n    {weights}")


if __name__ == "__main__":
    main()
