"""What is G, and how does it act?"""

from invreg.groups.axis import CyclicPermutation, CyclicTranslation, Flip
from invreg.groups.conjugated import Conjugated
from invreg.groups.continuous import PlanarRotation, Scaling, Translation
from invreg.groups.contract import FiniteGroup, Group
from invreg.groups.cyclic import CyclicGroup
from invreg.groups.keys import OnKeys
from invreg.groups.planar import CyclicRotation, Dihedral
from invreg.groups.pointwise import SignFlip, Trivial
from invreg.groups.positions import PositionGroup
from invreg.groups.product import DirectProduct, SemidirectProduct
from invreg.groups.restricted import Restricted
from invreg.groups.spatial import SpatialRotation
from invreg.groups.symmetric import SymmetricGroup
from invreg.groups.transformation_set import TransformationSet
from invreg.groups.transformations import IndexedTransformations, Transformations

__all__ = [
    "Conjugated",
    "CyclicGroup",
    "CyclicPermutation",
    "CyclicRotation",
    "CyclicTranslation",
    "Dihedral",
    "DirectProduct",
    "FiniteGroup",
    "Flip",
    "Group",
    "IndexedTransformations",
    "OnKeys",
    "PlanarRotation",
    "PositionGroup",
    "Restricted",
    "Scaling",
    "SemidirectProduct",
    "SignFlip",
    "SpatialRotation",
    "SymmetricGroup",
    "TransformationSet",
    "Transformations",
    "Translation",
    "Trivial",
]
