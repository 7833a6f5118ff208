"""The symmetry add-on for any PyTorch model: regularise towards invariance, audit it, tie it in."""

from invreg import functional
from invreg.audit import (
    Comparison,
    DriftReport,
    Estimate,
    InvarianceAudit,
    InvarianceReport,
    LayersReport,
    SliceReport,
    measure_drift,
    measure_invariance,
    measure_layers,
)
from invreg.constraint import InvarianceConstraint
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
from invreg.orbit_loss import OrbitLoss, orbit_loss
from invreg.pooling import GroupPooling
from invreg.regularize import Regularization, regularize
from invreg.saliency import SaliencyMap, saliency_similarity
from invreg.sensitivity import jacobian_spectral_norm, spectral_norms
from invreg.symmetrize import Symmetrization, symmetrize
from invreg.tuning import Tuning, tune_weight
from invreg.tying import TiedFirstLayer, tie_first_layer

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "Conjugated",
    "CyclicGroup",
    "CyclicPermutation",
    "CyclicRotation",
    "CyclicTranslation",
    "Dihedral",
    "DirectProduct",
    "DriftReport",
    "Estimate",
    "FiniteGroup",
    "Flip",
    "Group",
    "GroupPooling",
    "InvarianceAudit",
    "InvarianceConstraint",
    "InvarianceLoss",
    "InvarianceReport",
    "KLInvarianceLoss",
    "L2InvarianceLoss",
    "LayersReport",
    "NormalizedL2InvarianceLoss",
    "OnKeys",
    "OrbitLoss",
    "PlanarRotation",
    "PositionGroup",
    "Regularization",
    "Restricted",
    "SaliencyMap",
    "Scaling",
    "SemidirectProduct",
    "SignFlip",
    "SliceReport",
    "SpatialRotation",
    "SymmetricGroup",
    "Symmetrization",
    "TiedFirstLayer",
    "TransformationSet",
    "Translation",
    "Trivial",
    "Tuning",
    "functional",
    "jacobian_spectral_norm",
    "measure_drift",
    "measure_invariance",
    "measure_layers",
    "orbit_loss",
    "regularize",
    "saliency_similarity",
    "spectral_norms",
    "symmetrize",
    "tie_first_layer",
    "tune_weight",
]
