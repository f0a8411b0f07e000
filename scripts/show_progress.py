"""Of fairseq-train's simple log on standard input: how far it is, how long still, loss and speed; no other line.

moe-nmt train … --max-update 3000 --log-format simple | python scripts/show_progress.py 3000
"""

import re
import sys


def figure(name: str, line: str) -> float:
    """A figure of a log line, written `name=1.5` or `name 1.5`."""
    return float(re.search(rf"\b{name}[= ]([\d.]+)", line)[1])


def describe(line: str, updates: int) -> str | None:
    """What to show of a log line, or None."""
    if "valid on" in line:
        return f"held-out loss {figure('nll_loss', line):.2f} bits, perplexity {figure('ppl', line):.2f}"
    if "train_inner" not in line:
        return None
    done = figure("num_updates", line)
    left = round(figure("wall", line) * (updates / done - 1))
    load = f", expert load {figure('moe_balance', line):.2f} (1 is even)" if "moe_balance" in line else ""
    return (
        f"update {done:.0f} of {updates}, about {left // 60}:{left % 60:02} left; "
        f"loss {figure('nll_loss', line):.2f} bits, {figure('wps', line):,.0f} words/s{load}"
    )


if __name__ == "__main__":
    for line in sys.stdin:
        shown = describe(line, int(sys.argv[1]))
        if shown:
            print(f"train: {shown}", flush=True)
