"""The symmetry add-on for any PyTorch model: regularise towards invariance, audit it, tie it in."""

from invreg import functional
from invreg.audit import ElementReport, Estimate, InvarianceReport, measure_invariance
from invreg.groups import (
    Conjugated,
    CyclicGroup,
    CyclicPermutation,
    CyclicRotation,
    CyclicTranslation,
    Dihedral,
    DirectProduct,
    FiniteGroup,
    Flip,
    Group,
    OnKeys,
    PlanarRotation,
    PositionGroup,
    Restricted,
    Scaling,
    SemidirectProduct,
    SignFlip,
    SpatialRotation,
    SymmetricGroup,
    TransformationSet,
    Translation,
    Trivial,
)
from invreg.losses import InvarianceLoss, KLInvarianceLoss, L2InvarianceLoss, NormalizedL2InvarianceLoss
from invreg.pooling import GroupPooling
from invreg.saliency import SaliencyMap, saliency_similarity
from invreg.tying import TiedFirstLayer, tie_first_layer

__version__ = "0.1.0"

__all__ = [
    "Conjugated",
    "CyclicGroup",
    "CyclicPermutation",
    "CyclicRotation",
    "CyclicTranslation",
    "Dihedral",
    "DirectProduct",
    "ElementReport",
    "Estimate",
    "FiniteGroup",
    "Flip",
    "Group",
    "GroupPooling",
    "InvarianceLoss",
    "InvarianceReport",
    "KLInvarianceLoss",
    "L2InvarianceLoss",
    "NormalizedL2InvarianceLoss",
    "OnKeys",
    "PlanarRotation",
    "PositionGroup",
    "Restricted",
    "SaliencyMap",
    "Scaling",
    "SemidirectProduct",
    "SignFlip",
    "SpatialRotation",
    "SymmetricGroup",
    "TiedFirstLayer",
    "TransformationSet",
    "Translation",
    "Trivial",
    "functional",
    "measure_invariance",
    "saliency_similarity",
    "tie_first_layer",
]
