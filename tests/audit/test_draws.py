"""Do samples get their elements whatever the batches and however many processes there are?"""

import pytest
import torch

from invreg import CyclicRotation, PlanarRotation, Trivial
from invreg.audit.draws import Draws

CPU = torch.device("cpu")


def drawn(sizes: list[int], rank: int = 0, world: int = 1) -> torch.Tensor:
    draws = Draws(PlanarRotation(), 2, torch.Generator().manual_seed(3), rank=rank, world=world)
    parts = []
    for size in sizes:
        parts.append(draws.following(size, CPU))
        draws.advance(size)
    return torch.cat(parts, 1)


@pytest.mark.parametrize("sizes", [[600], [1] * 600, [255, 1, 256, 88], [300, 300]])
def test_batches_do_not_matter(sizes):
    assert torch.equal(drawn(sizes), drawn([600]))
    assert len(drawn([600]).flatten().unique()) == 1200


@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_that_are_dealt_samples_in_turn_get_what_one_would(world):
    """Three and five do not divide the blocks in which elements are drawn."""
    alone = drawn([600])
    for rank in range(world):
        assert torch.equal(drawn([100, 20], rank, world), alone[:, rank::world][:, :120])


def test_elements_are_not_used_up_before_it_goes_on():
    draws = Draws(PlanarRotation(), 1, torch.Generator().manual_seed(0))
    first = draws.following(5, CPU)
    assert torch.equal(draws.following(5, CPU), first)
    draws.advance(5)
    assert not torch.equal(draws.following(5, CPU), first)


def test_goes_on_from_where_it_was():
    draws, again = (Draws(PlanarRotation(), 1, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    draws.following(300, CPU)
    draws.advance(300)
    again.load_state_dict(draws.state_dict())
    assert torch.equal(again.following(400, CPU), draws.following(400, CPU))


def test_all_elements_are_the_same_for_every_sample():
    rng = torch.Generator()
    assert Draws(CyclicRotation(4), None, rng).following(7, CPU).tolist() == [1, 2, 3]
    assert len(Draws(Trivial(), None, rng).following(7, CPU)) == 0
