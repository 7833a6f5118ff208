"""How invariant is a model, over all the data that a loader yields?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any, Literal

import torch

from invreg.audit.evaluate import OutputAction
from invreg.audit.progress import InvarianceAudit
from invreg.audit.report import InvarianceReport
from invreg.functional import Model
from invreg.groups import Transformations
from invreg.saliency import MapMethod


def measure_invariance(
    model: Model,
    loader: Iterable[Any],
    group: Transformations,
    *,
    output_action: OutputAction | None = None,
    outputs: Literal["logits", "values"] = "logits",
    saliency: MapMethod | Literal["paper"] | None = "paper",
    saliency_samples: int | None = 256,
    samples: int | None = None,
    rng: torch.Generator | None = None,
    target_precision: float | None = None,
    mode: Literal["eval", "train"] = "eval",
    device: torch.device | str | None = None,
    input_key: str | Sequence[str] = "inputs",
    label_key: str = "labels",
    worst_samples: int = 10,
    kept_samples: int = 100_000,
    on_error: Literal["raise", "skip"] = "raise",
    checkpoint: str | PathLike[str] | None = None,
    distributed: bool = True,
    progress: bool = True,
) -> InvarianceReport:
    """Measures how invariant a classifier is to a group, over all the data that a loader yields.

    The model is called as ``model(x)``, without gradients, once per batch and element, and once more for the first
    batch to see whether it gives the same outputs again. It is found afterwards as it was: modes, buffers, gradients,
    and torch's random numbers too, also if something raises; its hooks fire. Memory does not grow with the data, but
    for a few numbers for each of the first ``kept_samples`` samples.

    Args:
        model: Any callable from inputs ``(N, ...)`` to logits ``(N, C)``; ``(N, 1)`` or ``(N,)`` for a single logit,
            whose sigmoid is the probability of class 1; or ``(N, C, ...)`` with a prediction per position. A callable
            that is no module is called as it is: put the network inside it into eval mode yourself.
        loader: Yields batches: inputs, or ``(inputs, labels)``, or a mapping. Inputs are floating point, ``(N, ...)``,
            or for ``OnKeys`` a mapping, tuple or list of tensors; labels are class indices in the shape of the
            predictions, ``(N,)``; for a single logit also 0.0 and 1.0.
        group: The group, or a ``TransformationSet``. Under a group that is not ``exact`` the report also says how much
            the action itself loses, for which one more forward per batch and element is made.
        output_action: How the group acts on outputs that shall move with the input (segmentation maps, key points,
            vectors): a group with the same elements, or a callable ``(element, outputs)`` that takes what ``act`` does.
            Outputs at ``gx`` are moved back by it before they are compared with those at ``x``. None: outputs shall
            stay the same.
        outputs: ``"values"`` for outputs that are no logits (embeddings, regression, key points): their squared
            distance over all entries is measured, and neither distributions nor predictions; labels are not looked at.
        saliency: How to make the maps for SI: ``"paper"`` for ``SaliencyMap()``, another map method, or None to
            leave SI out. It is by far the most expensive part. The class to explain is the label or, without labels,
            the model's own prediction at ``x``. ``OnKeys``, outputs that move or are no logits, and a
            ``TransformationSet`` that does not say how it moves maps, have none.
        saliency_samples: On how many samples, the first ones, SI is measured; None stands for all.
        samples: Non-identity elements drawn for each sample, without replacement; None measures all of a finite group.
        rng: Where drawn elements come from; None uses a generator with a fixed seed, so that audits can be repeated.
        target_precision: Stops after the first batch at which the standard error of each of the three errors is at
            most this share of its mean, 0.05 say, but not before 100 samples. Data must come in random order then.
        mode: The mode to measure a module in. In ``"train"`` its buffers are put back too.
        device: Where to move the batches; None stands for where the module's first parameter is.
        input_key: Where a mapping has the inputs; several keys make a dict of their entries, for ``OnKeys``.
        label_key: Where a mapping has the labels, if it has any.
        worst_samples: How many of the least invariant samples the report shows.
        kept_samples: Of how many samples, the first ones, the report has numbers, for ``compare`` and ``bootstrap``.
        on_error: ``"skip"`` leaves samples out that cannot be read, at which the model raises, or whose outputs are not
            finite; the report counts and lists them.
        checkpoint: A file to save the audit to every 20 seconds, when it is interrupted, and at its end. If there is
            one, the audit goes on from it: the loader must yield the same samples in the same order.
        distributed: Under ``torch.distributed`` each process audits its own part of the data, and each gets the report
            of all. Samples are thought to be dealt in turn, as torch's ``DistributedSampler`` does, whose repeated
            samples are left out. False where one process audits alone.
        progress: Whether to show a progress bar, on a terminal only.

    Returns:
        The report. For a group of the identity alone, errors are 0 and similarities 1.

    Raises:
        TypeError: Inputs or outputs are not floating-point tensors, labels are no class indices, a batch is none of
            the forms above, or an argument is of another kind than said.
        ValueError: The loader is empty, shapes or labels do not fit, outputs are not finite (the message names the
            sample and the element), ``samples`` or ``output_action`` do not suit the group, SI is asked of outputs that
            have none, or ``checkpoint`` is that of another audit.
        RuntimeError: The model raised; the message names the element, and the model's own error is the cause. Or the
            audit failed in another process.

    Source: Moskalev et al. (2023), section 3.1; averages leave the identity out.

    Example:
        >>> from invreg import CyclicRotation
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> loader = [(torch.randn(16, 1, 8, 8), torch.randint(10, (16,))) for _ in range(3)]
        >>> report = measure_invariance(model, loader, CyclicRotation(4))
        >>> report.samples, report.elements, report.logit_error.mean > 0
        (48, 3, True)
    """
    audit = InvarianceAudit(
        model,
        group,
        output_action=output_action,
        outputs=outputs,
        saliency=saliency,
        saliency_samples=saliency_samples,
        samples=samples,
        rng=rng,
        mode=mode,
        device=device,
        worst_samples=worst_samples,
        kept_samples=kept_samples,
        on_error=on_error,
        distributed=distributed,
    )
    audit.run(
        loader,
        target_precision=target_precision,
        checkpoint=checkpoint,
        input_key=input_key,
        label_key=label_key,
        progress=progress,
    )
    return audit.report()
