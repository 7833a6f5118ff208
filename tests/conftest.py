"""What holds for every test: the same random numbers in every run."""

import pytest
import torch
from hypothesis import settings

collect_ignore = ["benchmarks/alternatives"]
"""They import what only an environment of their own has."""

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

torch.set_num_threads(1)  # models this small wait for threads more than they gain by them


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
