"""Training batches: sentences of about the same length, of all directions."""

import types

import numpy as np

from moe_nmt.fairseq_plugin.dataset import shuffled_by_length


class Sizes(types.SimpleNamespace):
    def __len__(self):
        return len(self.sizes)


def test_pairs_are_ordered_by_their_longer_side_then_by_the_target():
    dataset = Sizes(sizes=np.array([[3, 9], [9, 8], [2, 1], [9, 4], [1, 2]]))
    assert shuffled_by_length(dataset).tolist() == [2, 4, 3, 1, 0]


def test_pairs_of_equal_lengths_come_in_an_order_that_the_seed_gives():
    dataset = Sizes(sizes=np.full((50, 2), 7))
    orders = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        orders.append(shuffled_by_length(dataset).tolist())
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[2]) == list(range(50))


def test_it_pads_less_than_an_order_by_source():
    rng = np.random.default_rng(0)
    source = rng.lognormal(3, 0.7, 4000).astype(int) + 1
    target = (source * rng.lognormal(0, 0.2, 4000)).astype(int) + 1
    dataset = Sizes(sizes=np.stack([source, target], 1))

    def places(order):
        batches = np.array_split(order, 80)
        return sum(len(batch) * dataset.sizes[batch].max(0).sum() for batch in batches)

    assert places(shuffled_by_length(dataset)) < 0.97 * places(np.lexsort((target, source)))
