"""How invariant is this model?"""

from invreg.audit.bootstrap import Interval
from invreg.audit.comparison import Comparison, Difference
from invreg.audit.drift import DriftReport, measure_drift
from invreg.audit.estimate import Estimate
from invreg.audit.layer_report import LayerReport, LayersReport
from invreg.audit.layers import measure_layers
from invreg.audit.measure import measure_invariance
from invreg.audit.progress import InvarianceAudit
from invreg.audit.report import InvarianceReport, SliceReport
from invreg.audit.samples import SaliencyExample, SampleTable, SkippedSamples, WorstSample

__all__ = [
    "Comparison",
    "Difference",
    "DriftReport",
    "Estimate",
    "Interval",
    "InvarianceAudit",
    "InvarianceReport",
    "LayerReport",
    "LayersReport",
    "SaliencyExample",
    "SampleTable",
    "SkippedSamples",
    "SliceReport",
    "WorstSample",
    "measure_drift",
    "measure_invariance",
    "measure_layers",
]
