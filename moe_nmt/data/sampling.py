"""Temperature sampling: how much each language or direction is seen, whatever the size of its corpus."""

from __future__ import annotations

from collections.abc import Mapping


def temperature_shares(counts: Mapping[str, int], temperature: float) -> dict[str, float]:
    """The share of each name, `p_i ∝ (n_i / N) ** (1 / T)`, summing to 1 (Arivazhagan et al. 2019).

    T = 1 keeps the proportions of the counts, a larger T flattens them, T = inf makes them equal. Names without data
    get 0 at every temperature. ValueError unless T > 0 and some count is positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} cannot be used: it must be above 0; 1 keeps the proportions")
    total = sum(counts.values())
    if total <= 0 or min(counts.values()) < 0:
        raise ValueError(f"counts {dict(counts)} cannot be sampled: none may be negative, and one must be positive")
    flattened = {name: (count / total) ** (1 / temperature) if count else 0.0 for name, count in counts.items()}
    scale = sum(flattened.values())
    return {name: value / scale for name, value in flattened.items()}


def allot(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Splits `total` into whole numbers by the shares: their sum is exactly `total` (largest remainders first)."""
    exact = {name: share * total for name, share in shares.items()}
    whole = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(shares, key=lambda name: whole[name] - exact[name])
    for name in by_remainder[: total - sum(whole.values())]:
        whole[name] += 1
    return whole
