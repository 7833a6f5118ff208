"""How invariant is this model?"""

from invreg.audit.measure import measure_invariance
from invreg.audit.report import ElementReport, Estimate, InvarianceReport

__all__ = ["ElementReport", "Estimate", "InvarianceReport", "measure_invariance"]
