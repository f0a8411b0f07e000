"""Routing and the whole layer as loops over tokens and experts, written from the papers' formulas alone.

Everything is differentiable, so that gradients can be compared too. Nothing here uses `moe_nmt`.
Shape letters: N tokens, E experts, D model width, F inner width.
"""

from collections import Counter

import torch


def probabilities(x_D, gate_ED):
    """p_e = exp(w_e . x) / sum of the same over all experts, in float32."""
    power = [torch.exp((row_D.float() * x_D.float()).sum()) for row_D in gate_ED]
    return [value / sum(power) for value in power]


def route(x_ND, gate_ED, k, capacity=None, normalize="none"):
    """The assignments that are carried out as {(token, expert): weight}, all first choices being served first."""
    prob = [probabilities(x_D, gate_ED) for x_D in x_ND]
    chosen = [sorted(range(len(p)), key=lambda e, p=p: -p[e].item())[:k] for p in prob]
    load, kept = Counter(), []
    for choice in range(k):
        for token in range(len(prob)):
            expert = chosen[token][choice]
            if capacity is None or load[expert] < capacity:
                load[expert] += 1
                kept.append((token, expert))
    weights = {}
    for token, expert in kept:
        survivors = [e for t, e in kept if t == token]
        among = {"none": None, "before_dropping": chosen[token], "after_dropping": survivors}[normalize]
        total = 1.0 if among is None else sum(prob[token][e] for e in among)
        weights[token, expert] = prob[token][expert] / total
    return weights


def feed_forward(x_D, weight1_DF, bias1_F, weight2_FD, bias2_D):
    """relu(x W1 + b1) W2 + b2 of one expert for one token."""
    return torch.relu(x_D @ weight1_DF + bias1_F) @ weight2_FD + bias2_D


def mixture(x_ND, weights, experts):
    """y_t = sum over the assignments of t of weight times expert; `experts`: for each its weights and biases."""
    outputs = []
    for token, x_D in enumerate(x_ND):
        y_D = torch.zeros_like(x_D)
        for (t, expert), weight in weights.items():
            if t == token:
                y_D = y_D + weight.to(x_D.dtype) * feed_forward(x_D, *experts[expert])
        outputs.append(y_D)
    return torch.stack(outputs) if outputs else x_ND * 0
