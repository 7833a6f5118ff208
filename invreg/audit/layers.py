"""Where in a model is a symmetry lost?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from invreg.audit.activations import Comparison, Piece, tensors_in
from invreg.audit.batches import loaded
from invreg.audit.draws import Draws
from invreg.audit.estimate import Estimate
from invreg.audit.layer_report import LayersReport
from invreg.audit.layer_sums import LayerSums
from invreg.functional import Model
from invreg.groups import Group, IndexedTransformations, Transformations
from invreg.groups.batch import Batch, first_tensor, map_tensors, shapes
from invreg.groups.transformations import checked
from invreg.losses import check_draw
from invreg.preserve import preserved

_KEPT = 32
"""On how many samples at least the inputs of the first layer that loses the symmetry are looked at."""


def measure_layers(
    model: Model,
    loader: Iterable[Any],
    group: Transformations,
    *,
    module: nn.Module | None = None,
    layers: Sequence[str] | None = None,
    samples: int | None = None,
    rng: torch.Generator | None = None,
    tolerance: float = 1e-4,
    device: torch.device | str | None = None,
    input_key: str | Sequence[str] = "inputs",
    label_key: str = "labels",
    progress: bool = True,
) -> LayersReport:
    r"""Measures at each layer of a model how far its output is from being invariant and from being equivariant.

    .. math::
        \frac{\tfrac12 \mathbb{E} \lVert h(x) - h(gx) \rVert^2}{V}, \qquad
        \frac{\tfrac12 \mathbb{E} \lVert h(x) - g^{-1} h(gx) \rVert^2}{V}, \qquad
        V = \sum_i \operatorname{Var}[h_i(x)]

    are 0 where the output stays as it is, or moves along with the input, and 1 where a transformed input is as far from
    the input as another input is: half the mean squared distance of two samples is V. Equivariance is measured where
    the output has as many axes as the input, at least three, and the group can move it: images and feature maps,
    whatever their size. Outputs in another layout (flattened, tokens) count as lost unless they are invariant, and so
    do values that a group changes without saying how (a sign flip). A layer of another resolution than the input is
    moved by the same elements, which fits turns, mirrors and shifts by a share of the side, but not by pixels.

    Each forward takes the inputs and all their transformed copies together, as many rows as a batch of the loader has
    or, if that is more, one sample under all elements; errors are computed while it runs, and no activation is kept. A
    module is measured in eval mode, without gradients, and found afterwards as it was, also if something raises.

    Args:
        model: A ``torch.nn.Module``, or with ``module`` any callable, from inputs ``(N, ...)`` to outputs of any kind.
        loader: Yields batches, as for ``measure_invariance``; labels are not used.
        group: The group, or a ``TransformationSet``; one without ``realign``, and ``OnKeys``, have invariance errors
            only.
        module: The module whose layers are watched, where ``model`` is a callable that calls it:
            ``measure_layers(lambda x: net(pixel_values=x), loader, group, module=net)``.
        layers: Names of the layers to measure, as in ``named_modules()``; "" is the whole module. None: all that the
            forward calls.
        samples: Non-identity elements drawn for each sample, without replacement; None measures all of a finite group.
        rng: Where drawn elements come from; None uses a generator with a fixed seed, so that audits can be repeated.
        tolerance: The error up to which a symmetry counts as kept, beside twice the action's own error, if the group is
            not ``exact``.
        device: Where to move the batches; None stands for where the module's first parameter is.
        input_key: Where a mapping has the inputs; several keys make a dict of their entries, for ``OnKeys``.
        label_key: Where a mapping has the labels, if it has any.
        progress: Whether to show a progress bar, on a terminal only.

    Returns:
        The report, with a row for the input, then one for each call of each layer. A layer that returns several tensors
        is measured by the first with a row for each input.

    Raises:
        TypeError: There is no module to watch, a batch is of none of the forms above, or an argument is of another kind
            than said.
        ValueError: The loader is empty, there is no layer of a name in ``layers``, ``samples`` does not suit the group,
            the group cannot act on the inputs, or ``model`` never calls ``module``.
        RuntimeError: The model raised; its own error is the cause.

    Example:
        >>> from invreg import Flip
        >>> from torch import nn
        >>> net = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Hardtanh(), nn.ZeroPad2d((1, 0, 0, 0)))
        >>> report = measure_layers(net, [torch.randn(16, 1, 8, 8)], Flip())
        >>> [layer.name for layer in report.layers]
        ['input', '0', '1', '2', 'output']
        >>> report.first_lost.name, report.layers[2].equivariance_error.mean < 1e-10
        ('2', True)
    """
    check_draw(group, samples, rng)
    root = _watched(model, module)
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)):
        raise TypeError(f"tolerance must be a number, a share of a layer's variance: got {tolerance!r}.")
    if not (tolerance >= 0 and isfinite(tolerance)):
        raise ValueError(f"tolerance must be 0 or more, a share of a layer's variance: got {tolerance!r}.")
    names = _named(root, layers)
    if device is None:
        device = next((parameter.device for parameter in root.parameters()), None)
    audit = _Audit(
        model, group, samples=samples, rng=torch.Generator().manual_seed(0) if rng is None else rng, layers=names
    )
    stream = loaded(loader, input_key=input_key, label_key=label_key, device=device, progress=progress)
    with preserved(model, training=False), preserved(root, training=False), torch.no_grad():
        with ExitStack() as hooks:
            for name, layer in names.items():
                hooks.callback(layer.register_forward_hook(partial(audit.after, name)).remove)
            for batch in stream:
                audit.add(batch.inputs)
        if layers is None and len(audit.rows) == 1:
            raise ValueError(
                f"model must call the module whose layers are watched, {type(root).__name__}: it called none of its "
                "layers. Set module= to the one that it calls."
            )
        report = LayersReport(
            model=_name(model, root),
            group=repr(group),
            is_group=isinstance(group, Group),
            samples=audit.seen,
            elements=audit.elements,
            exhaustive=audit.elements == group.order - 1,
            tolerance=float(tolerance),
            action_error=audit.action_error(),
            layers=tuple(audit.rows.report()),
            unused=tuple(
                name for name, layer in names.items() if name not in audit.called and (layers or _is_leaf(layer))
            ),
        )
        if report.first_lost is None:
            return report
        lost_in = _lost_in(audit, root, report)
        return report if lost_in is None else replace(report, lost_before=True, lost_in=lost_in)


def _watched(model: Model, module: nn.Module | None) -> nn.Module:
    """The module whose layers are watched."""
    if not callable(model):
        raise TypeError(f"model must be a torch.nn.Module, or a callable that calls one: got {type(model).__name__}.")
    root = model if module is None else module
    if not isinstance(root, nn.Module):
        name = "model" if module is None else "module"
        raise TypeError(
            f"{name} must be a torch.nn.Module, whose layers can be watched: got {type(root).__name__}. For a callable "
            "that calls one, also give that one: measure_layers(call, loader, group, module=net)."
        )
    eager = getattr(root, "_orig_mod", root)  # what torch.compile was given; compiled code ignores new hooks
    return eager if isinstance(eager, nn.Module) else root


def _named(root: nn.Module, layers: Sequence[str] | None) -> dict[str, nn.Module]:
    """The layers to watch by name, in the order of ``named_modules``; those that make weights left out."""
    inside = {
        id(part) for owner in root.modules() if isinstance(owner, ParametrizationList) for part in owner.modules()
    }
    found = {name: layer for name, layer in root.named_modules() if id(layer) not in inside and _is_called(layer)}
    if layers is None:
        return found
    if isinstance(layers, str) or not all(isinstance(name, str) for name in layers):
        raise TypeError(f"layers must be a list of names, e.g. ['conv1']: got {layers!r}.")
    if not layers:
        raise ValueError("layers must name at least one layer: got none. None measures all.")
    if unknown := [name for name in layers if name not in found]:
        near = get_close_matches(unknown[0], found, n=3, cutoff=0.5) or list(found)[1:4]
        raise ValueError(
            f"layers must be names from model.named_modules() of layers with a forward: got {unknown[0]!r}. "
            + (f"Did you mean one of {near}?" if near else "The module has no layers inside.")
        )
    return {name: layer for name, layer in found.items() if name in layers}


def _is_called(layer: nn.Module) -> bool:
    """Whether it has a forward; lists of modules and of parameters have none."""
    return type(layer).forward is not nn.Module.forward


def _is_leaf(layer: nn.Module) -> bool:
    return next(layer.children(), None) is None


def _name(model: Model, root: nn.Module) -> str:
    name = getattr(model, "__name__", type(model).__name__)
    return type(root).__name__ if name == "<lambda>" or isinstance(model, nn.Module) else str(name)


class _Audit:
    """What the batches seen so far have shown."""

    def __init__(
        self,
        model: Model,
        group: Transformations,
        *,
        samples: int | None,
        rng: torch.Generator,
        layers: Mapping[str, nn.Module],
    ) -> None:
        self.model = getattr(model, "_orig_mod", model)
        self.group = group
        self.samples = samples
        self.draws = Draws(group, samples, rng)
        self.layers = layers
        self.rows = LayerSums()
        self.refusals: dict[tuple[int, ...], str] = {}
        self.comparison: Comparison | None = None
        self.calls: Counter[str] = Counter()
        self.called: set[str] = set()
        self.kept: list[tuple[Batch, Tensor]] = []
        self.seen = 0
        self.elements = 0

    def add(self, inputs: Batch) -> None:
        """Measures one batch."""
        rows = len(self.group._check_batch(inputs))
        elements = self.draws.following(rows, first_tensor(inputs).device)
        self.draws.advance(rows)
        step = max(1, rows // (len(elements) + 1))
        for start in range(0, rows, step):
            part = slice(start, start + step)
            piece = map_tensors(lambda t: t[part], inputs)  # noqa: B023  # called at once
            drawn = elements if self.samples is None else elements[:, part]
            if self.seen < _KEPT:
                self.kept.append((map_tensors(torch.clone, piece), drawn))
            self.forward(piece, drawn, self.rows)
            self.seen += len(first_tensor(piece))
        self.elements = len(elements)

    def forward(self, inputs: Batch, elements: Tensor, rows: LayerSums) -> None:
        """Calls the model on some samples and their transformed copies, in which hooks compare what they see."""
        together = self._together(inputs, elements)
        self.comparison = Comparison(self.group, elements, inputs, self.refusals)
        if rows is self.rows:  # before the model, which may write into its inputs
            rows.add((None, 1), "input", type(inputs).__name__, 1, self.comparison.of_inputs(together))
        self.calls.clear()
        try:
            self.model(together)
        except Exception as error:
            raise RuntimeError(
                f"The model failed on inputs and their {len(elements)} transformed copies under {self.group!r}, in one "
                f"batch of shape {shapes(together)}: {error}"
            ) from error

    def after(self, name: str, layer: nn.Module, _: Any, output: Any) -> None:
        """Compares what a layer returned."""
        self.calls[name] += 1
        self.called.add(name)
        if self.comparison is not None:
            call = self.calls[name]
            label = (name or "output") + (f" (call {call})" if call > 1 else "")
            self.rows.add((name, call), label, type(layer).__name__, call, self.comparison.of_output(output))

    def action_error(self) -> Estimate | None:
        """The action's own equivariance error."""
        if not isinstance(self.group, Group) or self.group.exact:
            return None
        return next(self.rows.report()).equivariance_error

    def _together(self, inputs: Batch, elements: Tensor) -> Batch:
        """Some samples, then their copies under one element after another, in one batch."""
        try:
            if self.samples is None and isinstance(self.group, IndexedTransformations) and len(elements):
                return map_tensors(lambda copies: copies.flatten(0, 1), self.group.orbit(inputs))
            moved = [checked(self.group, self.group.act(g, inputs), inputs) for g in elements]
            return map_tensors(lambda *copies: torch.cat(copies), inputs, *moved)
        except (TypeError, ValueError):  # bad input, which the group explains
            raise
        except Exception as error:
            raise RuntimeError(
                f"The action of {self.group!r} failed on inputs of shape {shapes(inputs)}: {error}"
            ) from error


def _lost_in(audit: _Audit, root: nn.Module, report: LayersReport) -> str | None:
    """The module whose forward loses the symmetry before the first layer that has lost it is given its input.

    The inputs of that layer and of the modules that are calling it are measured, on the first samples. None if its own
    inputs have not lost it.
    """
    index = next(i for i, layer in enumerate(report.layers) if layer is report.first_lost)
    name, call = list(audit.rows.rows)[index]
    assert name is not None  # that of the inputs
    look = _Look(audit, name, call)
    with ExitStack() as hooks:
        for each, module in _named(root, None).items():
            hooks.callback(module.register_forward_pre_hook(partial(look.before, each), with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(look.after).remove)
        for inputs, elements in audit.kept:
            audit.forward(inputs, elements, look.rows)
    lost = {layer.name for layer in look.rows.report() if layer.measured and not report.keeps(layer)}
    if name not in lost:
        return None
    callers = list(dict.fromkeys(row.name for row in look.rows.rows.values()))
    outermost = next(i for i, caller in enumerate(callers) if caller in lost)
    return (outermost and callers[outermost - 1]) or report.model


class _Look:
    """What the inputs of a layer, and of the modules that are calling it, show.

    Args:
        audit: What has found the layer.
        name: The layer.
        call: Which of its calls.
    """

    def __init__(self, audit: _Audit, name: str, call: int) -> None:
        self.audit = audit
        self.target = name
        self.call = call
        self.calling: list[tuple[str, list[Piece]]] = []
        self.rows = LayerSums()

    def before(self, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Compares what a module is given."""
        comparison = self.audit.comparison
        assert comparison is not None
        seen = self.audit.calls[self.target] >= self.call  # so that the rest of the forward need not be looked at
        given = [] if seen else [one for one in tensors_in((args, kwargs)) if comparison.has_rows(one)]
        self.calling.append((name, [comparison.of(tensor) for tensor in given]))
        self.audit.calls[name] += 1
        if (name, self.audit.calls[name]) == (self.target, self.call):
            for caller, pieces in self.calling:
                for position, piece in enumerate(pieces):
                    self.rows.add((caller, position), caller, "", 1, piece)

    def after(self, *_: Any) -> None:
        """The module is done."""
        self.calling.pop()
