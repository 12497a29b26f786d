"""The forward pass of such a model in plain numpy, in f32."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantmill.selftest.model import EPSILON, EXPERTS, EXPERTS_USED, HEAD, HEADS, KV_HEADS, ROPE_BASE, Values

# Closer than this two experts may change places by rounding: a router's outputs have
# a deviation of 1 and an error of 0.03.
_MARGIN: Final = 0.3


def logits(weights: dict[str, Values], tokens: NDArray[np.int32]) -> tuple[Values, NDArray[np.bool_]]:
    """The logits [tokens, vocabulary] of a sequence, and whether a token's experts are beyond doubt."""
    state = weights["token_embd"][tokens]
    state = state + _attention(weights, _norm(state, weights["blk.0.attn_norm"]))
    hidden = _norm(state, weights["blk.0.ffn_norm"])
    if "blk.0.ffn_gate_inp" in weights:
        added, certain = _experts(weights, hidden)
    else:
        gate, up, down = (weights[f"blk.0.ffn_{name}"] for name in ("gate", "up", "down"))
        added, certain = _ffn(hidden, gate, up, down), np.ones(len(tokens), bool)
    return _norm(state + added, weights["output_norm"]) @ weights["output"].T, certain


def _attention(weights: dict[str, Values], hidden: Values) -> Values:
    """Causal attention over all tokens; [tokens, width] from and to."""
    count = len(hidden)

    def heads(name: str, number: int) -> Values:
        return (hidden @ weights[f"blk.0.attn_{name}"].T).reshape(count, number, HEAD)

    query = _rope(_norm(heads("q", HEADS), weights["blk.0.attn_q_norm"]))
    key = _rope(_norm(heads("k", KV_HEADS), weights["blk.0.attn_k_norm"])).repeat(HEADS // KV_HEADS, 1)
    value = heads("v", KV_HEADS).repeat(HEADS // KV_HEADS, 1)
    scores = query.transpose(1, 0, 2) @ key.transpose(1, 2, 0) * np.float32(HEAD**-0.5)
    scores[:, np.triu(np.ones((count, count), bool), 1)] = -np.inf
    mixed: Values = (_softmax(scores) @ value.transpose(1, 0, 2)).transpose(1, 0, 2).reshape(count, -1)
    return mixed @ weights["blk.0.attn_output"].T


def _experts(weights: dict[str, Values], hidden: Values) -> tuple[Values, NDArray[np.bool_]]:
    """The mixture of each token's best experts, by the router's probabilities among these."""
    routed = hidden @ weights["blk.0.ffn_gate_inp"].T
    ranked = np.sort(routed, -1)
    last, next_best = ranked[:, [-EXPERTS_USED]], ranked[:, [-EXPERTS_USED - 1]]
    share = _softmax(np.where(routed >= last, routed, -np.inf))
    gate, up, down = (weights[f"blk.0.ffn_{name}_exps"] for name in ("gate", "up", "down"))
    every = [share[:, [i]] * _ffn(hidden, gate[i], up[i], down[i]) for i in range(EXPERTS)]
    return sum(every[1:], every[0]), (last - next_best > _MARGIN)[:, 0]


def _ffn(hidden: Values, gate: Values, up: Values, down: Values) -> Values:
    gated = hidden @ gate.T
    return (gated / (1 + np.exp(-gated)) * (hidden @ up.T)) @ down.T


def _norm(state: Values, weight: Values) -> Values:
    return state / np.sqrt(np.mean(state * state, -1, keepdims=True) + np.float32(EPSILON)) * weight


def _softmax(scores: Values) -> Values:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _rope(state: Values) -> Values:
    """Rotate the halves of each head [tokens, heads, HEAD] by the token's position."""
    angle = np.arange(len(state))[:, None, None] * ROPE_BASE ** (-2 * np.arange(HEAD // 2) / HEAD)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    first, second = state[..., : HEAD // 2], state[..., HEAD // 2 :]
    return np.concatenate([first * cos - second * sin, first * sin + second * cos], -1)
