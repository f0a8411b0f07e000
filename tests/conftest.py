"""What all tests share: one thread, and the same random numbers whatever runs before."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
