"""Rows from every rank of a group to every other, differentiable.

Shape letters: A rows, G ranks, E experts, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from moe_nmt.distributed.groups import Level
from moe_nmt.distributed.traffic import Traffic


def exchange_counts(level: Level, sent: Tensor, traffic: Traffic) -> Tensor:
    """From what this rank sends to each, int64 [G, …], what each sends here, of the same shape: for numbers of rows."""
    sent = sent.contiguous()
    received = torch.empty_like(sent)
    distributed.all_to_all_single(received, sent, group=level.process_group)
    traffic.add(level, [sent[0].numel() * sent.element_size()] * level.size)
    return received


class AllToAll:
    """One exchange of rows over a level, that may go on while something else is computed.

    `start(x_AD)` sends the first `send[0]` rows to rank 0, the next to rank 1 and so on, and returns a buffer; `wait`
    of that buffer returns the rows received, those of rank 0 first. Between the two nothing may read the buffer. The
    gradient takes the way back, started in the backward pass of `wait` and awaited in that of `start`.

    All ranks of the level must take part in every exchange in the same order, with rows to send or without, and in its
    backward pass; so must all that is computed from the rows received.

    Args:
        send, receive: rows to and from each rank.
    """

    def __init__(self, level: Level, send: Sequence[int], receive: Sequence[int], traffic: Traffic):
        self.level, self.send, self.receive, self.traffic = level, list(send), list(receive), traffic
        self._pending: Any = None
        self.gradient_AD: Tensor | None = None

    def start(self, x_AD: Tensor) -> Tensor:
        buffer: Tensor = _Start.apply(x_AD, self)  # type: ignore[no-untyped-call]
        return buffer

    def wait(self, buffer_AD: Tensor) -> Tensor:
        received: Tensor = _Wait.apply(buffer_AD, self)  # type: ignore[no-untyped-call]
        return received

    def back(self) -> AllToAll:
        """The exchange that returns every row to where it came from."""
        return AllToAll(self.level, self.receive, self.send, self.traffic)

    def launch(self, x_AD: Tensor, send: list[int], receive: list[int]) -> Tensor:
        buffer_AD = x_AD.new_empty(sum(receive), x_AD.shape[1])
        self._pending = distributed.all_to_all_single(
            buffer_AD, x_AD.contiguous(), receive, send, group=self.level.process_group, async_op=True
        )
        row = x_AD.element_size() * x_AD.shape[1]
        self.traffic.add(self.level, [count * row for count in send])
        return buffer_AD

    def join(self) -> None:
        self._pending.wait()
        self._pending = None


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_AD: Tensor, exchange: AllToAll) -> Tensor:
        ctx.exchange = exchange
        return exchange.launch(x_AD, exchange.send, exchange.receive)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        ctx.exchange.join()
        gradient_AD, ctx.exchange.gradient_AD = ctx.exchange.gradient_AD, None
        return gradient_AD, None


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, buffer_AD: Tensor, exchange: AllToAll) -> Tensor:
        ctx.exchange = exchange
        exchange.join()
        return buffer_AD.view_as(buffer_AD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_AD: Tensor) -> tuple[Tensor | None, ...]:
        exchange = ctx.exchange
        exchange.gradient_AD = exchange.launch(grad_AD, exchange.receive, exchange.send)
        return grad_AD, None  # its values are not looked at: the gradient of what was sent has another shape
