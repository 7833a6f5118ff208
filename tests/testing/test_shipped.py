"""Does every group that invreg ships keep the laws?"""

import inspect

import torch
from hypothesis import HealthCheck, given, settings

import invreg
from invreg import Conjugated, FiniteGroup, Group, PlanarRotation
from invreg.testing import LAWS, check_group, finite_groups, parametrize_with_laws
from tests.groups.catalogue import CATALOGUE, INFINITE, ON_KEYS


def batch(*shape):
    return torch.zeros(1, *shape)


def channels_last(x):
    return x.movedim(1, -1)


def channels_first(x):
    return x.movedim(-1, 1)


FINITE = [(entry.group, batch(*entry.shapes[0])) for entry in CATALOGUE]

ROUNDING = [(entry.group, batch(*entry.shape)) for entry in INFINITE if entry.tolerance < 0.1]

INTERPOLATING = [(entry.group, batch(*entry.shape)) for entry in INFINITE if entry.tolerance >= 0.1]

OTHERS = [
    (ON_KEYS, {"image": batch(2, 3, 3), "mask": batch(3, 3)}),
    (Conjugated(PlanarRotation(), channels_first, channels_last), batch(28, 28, 2)),
]


@parametrize_with_laws(FINITE, max_examples=3)
def test_finite_group_keeps_the_law(group, law):
    law(group)


@parametrize_with_laws(ROUNDING, tolerance=1e-5, max_examples=4)
def test_group_that_rounds_keeps_the_law(group, law):
    law(group)


@parametrize_with_laws(INTERPOLATING, tolerance=0.15, max_examples=3)  # images of 24 pixels, up to three interpolations
def test_group_that_interpolates_keeps_the_law_nearly(group, law):
    law(group)


@parametrize_with_laws(OTHERS, max_examples=4)
def test_group_that_acts_on_other_inputs_keeps_the_law(group, law):
    law(group)


@given(finite_groups((2, 4, 4)))
@settings(max_examples=8, suppress_health_check=list(HealthCheck))  # check_group is a hypothesis test itself
def test_any_composition_of_groups_keeps_the_laws(group):
    check_group(group, batch(2, 4, 4), max_examples=3)


def test_every_group_that_users_import_is_checked():
    public = [getattr(invreg, name) for name in invreg.__all__]
    groups = {thing for thing in public if inspect.isclass(thing) and issubclass(thing, Group)}
    bases = {invreg.Group, invreg.FiniteGroup, invreg.CyclicGroup, invreg.PositionGroup}
    checked = {base for group, _ in FINITE + ROUNDING + INTERPOLATING + OTHERS for base in type(group).__mro__}
    assert bases < groups <= checked
    assert {PlanarRotation, Conjugated} <= groups - bases


def test_there_is_something_to_check():
    assert len(FINITE) == len(CATALOGUE) > 30
    assert all(isinstance(group, FiniteGroup) for group, _ in FINITE)
    assert len(ROUNDING) + len(INTERPOLATING) == len(INFINITE) > 10
    assert min(len(ROUNDING), len(INTERPOLATING)) > 1
    assert len(LAWS) >= 15
