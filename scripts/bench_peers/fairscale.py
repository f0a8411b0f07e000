"""fairscale 0.4.13: MOELayer with Top2Gate, in a process group of one.

Top-2 only; the experts must divide the tokens; its capacity is 2 N / E, tokens above it are dropped, and this cannot be
changed. The second expert is drawn with Gumbel noise, in inference too.
"""

from fairscale.nn.moe import MOELayer, Top2Gate
from torch import Tensor, distributed, nn

from bench_peers import FFN, Cell, Unsupported, set_gate


class Layer(nn.Module):
    def __init__(self, cell: Cell):
        super().__init__()
        if not distributed.is_initialized():
            backend = "nccl" if cell.device.startswith("cuda") else "gloo"
            distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
        gate = Top2Gate(cell.dim, cell.experts)
        set_gate(gate.wg, cell)
        self.moe = MOELayer(gate, nn.ModuleList(FFN(cell.dim, cell.ffn_dim) for _ in range(cell.experts)))

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        y_ND = self.moe(x_ND[:, None]).squeeze(1)
        loss: Tensor = self.moe.l_aux * len(self.moe.experts) ** 2
        return y_ND, loss


def check(cell: Cell) -> None:
    cell.require_k(2)
    if cell.tokens % cell.experts:
        raise Unsupported("it needs a number of tokens that the number of experts divides")
    cell.require_memory(5 * 4 * 2 * cell.tokens**2)  # about five [N, E, C] tensors at the same time


build = Layer
