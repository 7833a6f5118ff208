"""What is G, and how does it act?"""

from invreg.groups.axis import CyclicPermutation, CyclicTranslation, Flip
from invreg.groups.contract import FiniteGroup, Group
from invreg.groups.cyclic import CyclicGroup
from invreg.groups.planar import CyclicRotation, Dihedral
from invreg.groups.pointwise import SignFlip, Trivial
from invreg.groups.positions import PositionGroup
from invreg.groups.product import DirectProduct

__all__ = [
    "CyclicGroup",
    "CyclicPermutation",
    "CyclicRotation",
    "CyclicTranslation",
    "Dihedral",
    "DirectProduct",
    "FiniteGroup",
    "Flip",
    "Group",
    "PositionGroup",
    "SignFlip",
    "Trivial",
]
