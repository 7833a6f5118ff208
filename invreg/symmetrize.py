"""How is invariance built into plain layers, for free?"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized, register_parametrization, remove_parametrizations
from typing_extensions import Self

from invreg.groups import FiniteGroup, OnKeys
from invreg.preserve import preserved

__all__ = ["Symmetrization", "symmetrize"]


def symmetrize(
    model: nn.Module,
    group: FiniteGroup,
    inputs: Tensor,
    *,
    equivariant: int | None = None,
    rescale: bool = True,
) -> Symmetrization:
    r"""Makes a multi-layer perceptron exactly invariant by symmetric weights; a step costs what it did before.

    A plain network contains invariant ones: the group's elements permute the units of its hidden layers, and its
    weights are the same along orbits. From here on each weight is replaced by its average over the group,

    .. math:: P(W) = \frac1{|G|} \sum_{g \in G} \rho_{out}(g) \, W \, \rho_{in}(g)^{-1},

    and each bias likewise. Of a hidden layer's units, ``width // group.order`` filters come in ``group.order``
    transforms each, one after the other; the units left over are each invariant, and so are the outputs. Between the
    layers may stand what treats all units alike: activations, dropout, ``LayerNorm(elementwise_affine=False)``, skip
    connections between hidden layers of one width. Before the first may stand what the group commutes with: a
    flatten, a normalisation by one mean and deviation.

    Which layers there are is seen on ``inputs``; then the invariance is checked, in eval mode and with noise on the
    data and on the weights that train. If the check fails, the model is left as it was found. A model that takes other
    ways in training mode, or whose outputs are constant on ``inputs``, is beyond what it can see.

    Weights stay the same ``Parameter`` objects of the same shapes, so an optimiser goes on, and they stay symmetric
    under any. Their keys in the state dict are those of ``torch.nn.utils.parametrize`` until ``remove()``; a state
    dict of whatever weights that is loaded meanwhile is averaged too. As torch has it, such a model is copied but not
    pickled: save its state dict. Symmetrise before compiling.

    Args:
        model: The model: ``torch.nn.Linear`` layers in a row, each fed by the units of the one before. A single layer
            will do.
        group: A finite group that only moves and negates the entries of samples.
        inputs: Example data, shape ``(N, ...)`` with N at least 1, of any dtype and device that the model takes. The
            first layer takes all the entries of a sample, in their order.
        equivariant: How many hidden layers, from the first on, carry the group's elements on their units. The units
            of all later ones are invariant, so that the weights between these are free. None is all but the last,
            which was the most accurate on the paper's task; of a single hidden layer, that one.
        rescale: Whether averaged weights, whose deviation is smaller, are scaled once to the root mean square that
            they had, as fresh weights want. False keeps the plain orthogonal projection, for trained ones. Biases
            are never scaled.

    Returns:
        The symmetrisation: ``.layers`` names the layers whose weights it holds symmetric, in order, ``.remove()``
        leaves plain layers with the symmetric weights that they have got, and as a context manager it lasts for the
        block. Averages are taken in float32 or wider and returned in the weight's dtype.

    Raises:
        TypeError: ``model`` is no module, ``group`` no finite group, or ``inputs`` or the model's output no tensor.
        ValueError: The group does more than move and negate entries; ``inputs`` is empty; the model has lazy or no
            linear layers, other layers with weights, a layer that is used twice or parametrised already, or sizes
            that do not follow each other; a layer has fewer units than the group elements; ``equivariant`` is out of
            range; or the outputs are not finite or still not invariant.

    Source: Invariance from the start, instead of learned as in Moskalev et al. (2023). The average over the group is
    the Reynolds operator; weights tied along orbits are all equivariant linear maps between permutation
    representations: Ravanbakhsh, Schneider, Poczos (2017), "Equivariance through parameter-sharing".

    Example:
        >>> from invreg import CyclicRotation
        >>> layers = [torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)]
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), *layers)
        >>> x = torch.randn(5, 1, 8, 8)
        >>> symmetric = symmetrize(model, CyclicRotation(4), x)
        >>> torch.testing.assert_close(model(x), model(x.rot90(1, (-2, -1))))
        >>> symmetric.layers
        ['1', '3']
        >>> symmetric.remove()
        >>> torch.testing.assert_close(model(x), model(x.rot90(1, (-2, -1))))
    """
    return Symmetrization(model, group, inputs, equivariant, rescale)


class Symmetrization:
    """Weights of a model that are held symmetric. Made by ``symmetrize``, which documents it.

    Attributes:
        layers: Names of the layers whose weights are held symmetric, in the order in which data meets them.
    """

    def __init__(
        self, model: nn.Module, group: FiniteGroup, inputs: Tensor, equivariant: int | None, rescale: bool
    ) -> None:
        _check_arguments(model, group, inputs)
        self.group = group
        self.layers: list[str] = []
        self._held: list[tuple[nn.Module, str]] = []
        """Layers and the names of their parameters."""
        before: list[Tensor] = []
        with preserved(model, training=False), torch.no_grad():
            torch.manual_seed(0)
            stack = _linear_layers(model, inputs)
            actions = _actions_between(stack, group, inputs.shape[1:], equivariant)
            try:
                for number, (name, layer) in enumerate(stack):
                    self._hold(name, layer, actions[number], actions[number + 1], rescale, before)
                self._check(model, inputs, _names(stack))
            except BaseException:
                for (held, parameter), values in zip(self._held, before, strict=False):
                    _let_go(held, parameter, leave_parametrized=False)
                    getattr(held, parameter).data = values
                raise

    def remove(self) -> None:
        """Ends it: the layers are plain ones again, with the symmetric weights that they have by now."""
        while self._held:
            _let_go(*self._held.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"Symmetrization({self.group!r}, layers: {self.layers if self._held or not self.layers else 'removed'})"

    def _hold(
        self, name: str, layer: nn.Linear, entering: _Action, leaving: _Action, rescale: bool, before: list[Tensor]
    ) -> None:
        """Averages what a layer has got, and notes that, unless all that enters and leaves it is invariant."""
        bias_entering = _Action(torch.zeros(self.group.order, 1, dtype=torch.int64))
        for parameter, action in (("weight", entering), ("bias", bias_entering)):
            value = getattr(layer, parameter)
            if value is None:
                continue
            average = _Average(action, leaving.regular).to(value.device)
            if average.is_identity:
                continue
            new = average.average(value, rescale=rescale and parameter == "weight")
            before.append(value.data)
            register_parametrization(layer, parameter, average)
            self._held.append((layer, parameter))
            setattr(layer, parameter, new)
            if name not in self.layers:
                self.layers.append(name)

    def _check(self, model: nn.Module, x: Tensor, met: list[str]) -> None:
        """Raises unless outputs are finite and the same at ``x`` and at its images, also with other weights."""
        rows = torch.arange(max(len(x), self.group.order - 1), device=x.device)
        x = x[rows % len(x)]
        if x.is_floating_point():
            x = x + torch.randn_like(x)
        # Each sample under an element of its own, which statistics over the batch do not survive.
        gx = self.group.act(1 + rows % (self.group.order - 1), x) if self.group.order > 1 else x
        noisy = {name: p + 0.05 * torch.randn_like(p) for name, p in model.named_parameters() if p.requires_grad}
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                noisy[name] = buffer + torch.rand_like(buffer)
        for weights in ({}, noisy):
            y, gy = (functional_call(model, weights, (each,)) for each in (x, gx))
            if not y.isfinite().all():
                raise ValueError(
                    f"With symmetric weights in its layers {met}, the model returns numbers that are not finite. Make "
                    "sure that it returns finite ones without, or pass rescale=False."
                )
            difference, scale = (y - gy).abs().max(), y.abs().max()
            if difference > torch.finfo(y.dtype).eps ** 0.5 * scale:
                raise ValueError(
                    f"With symmetric weights in its layers {met}, the model is still not invariant to {self.group!r}: "
                    f"outputs move by {float(difference / scale):.1%} of the largest, now or once trained. Before "
                    "the first of them nothing may stand that the group does not commute with, such as parameters per "
                    "position. Between them nothing may stand that treats units differently, such as a batch "
                    "normalisation, other parameters per unit (take elementwise_affine=False), or a skip connection "
                    "from units that are permuted to units that are not."
                )


class _Action(NamedTuple):
    """How the group acts on the entries of a layer's input or output.

    Element ``g`` brings to ``i`` the entry that was at ``source[g, i]``, times ``sign[g, i]``; both ``(order, n)``.
    The first ``regular`` entries are filters in all their transforms.
    """

    source: Tensor
    sign: Tensor | None = None
    regular: int = 0


def _on_inputs(group: FiniteGroup, shape: Sequence[int]) -> _Action:
    """The group's action on samples, found on numbered entries and verified on others."""
    numbered = torch.arange(1, prod(shape) + 1, dtype=torch.float64)
    images = group.orbit(numbered.view(1, *shape)).reshape(group.order, -1)
    source, sign = images.abs().long() - 1, images.sign()
    if torch.equal(source.sort(1).values, torch.arange(source.shape[1]).expand_as(source)):
        other = torch.randn(numbered.shape, dtype=torch.float64)
        if torch.equal(group.orbit(other.view(1, *shape)).reshape(group.order, -1), sign * other[source]):
            return _Action(source, sign.to(torch.int8) if (sign < 0).any() else None)
    raise ValueError(
        f"Weights are symmetric under a group that moves and negates entries: {group!r} does more to samples of shape "
        f"{tuple(shape)}. Regularise with a loss, or tie the first layer, for approximate invariance."
    )


def _on_units(group: FiniteGroup, width: int, *, carried: bool) -> _Action:
    """The group's action on the units of a layer: as many filters in all their transforms as there is room for."""
    source = torch.arange(width).repeat(group.order, 1)
    regular = width // group.order * group.order if carried else 0
    g = group.elements()
    back = group.compose(group.inverse(g)[:, None], g[None, :])
    first = torch.arange(0, regular, group.order)
    source[:, :regular] = (first[:, None] + back[:, None, :]).flatten(1)
    return _Action(source, regular=regular)


def _actions_between(
    stack: list[tuple[str, nn.Linear]], group: FiniteGroup, shape: Sequence[int], equivariant: int | None
) -> list[_Action]:
    """The action on what enters the first layer, and on what leaves each."""
    hidden = len(stack) - 1
    carrying = max(hidden - 1, min(hidden, 1)) if equivariant is None else equivariant
    if equivariant is not None and (type(equivariant) is not int or not 1 <= equivariant <= hidden):
        raise ValueError(
            f"equivariant counts hidden layers, of which the model has {hidden}: got {equivariant}. None takes all but "
            "the last."
        )
    size, before = prod(shape), f"a sample of shape {tuple(shape)}"
    for number, (name, layer) in enumerate(stack):
        if layer.in_features != size:
            raise ValueError(
                f"Layer {name!r} must take all the {size} entries of {before}, in their order: it takes "
                f"{layer.in_features}. Symmetrise a model, or a part of one, whose linear layers {_names(stack)} "
                "follow each other."
            )
        size, before = layer.out_features, f"the output of {name!r}"
        if number < carrying and size < group.order:
            fewer = f", or pass equivariant={number}" if number else ", or take a smaller group"
            raise ValueError(
                f"Layer {name!r} must have a unit for each of the {group.order} elements of {group!r}: it has {size}. "
                f"Widen it{fewer}."
            )
    units = [_on_units(group, layer.out_features, carried=number < carrying) for number, (_, layer) in enumerate(stack)]
    return [_on_inputs(group, shape), *units]


class _Average(nn.Module):
    """A parametrisation: the average over the group of a weight ``(out, in)``, or of a bias ``(out,)``.

    Of a filter's rows, all of them at once; of an invariant unit's row, each by itself. Either is an average over
    orbits of entries, the same for all filters and for all invariant units.
    """

    def __init__(self, entering: _Action, regular: int) -> None:
        super().__init__()
        source, sign = entering.source, entering.sign
        self.order, self.regular = len(source), regular
        # Row a of a filter is row 0 moved by element a.
        self.filters = _Orbits(source.flatten(), None if sign is None else sign.flatten()) if regular else None
        cell, by = source.min(0)
        if sign is not None:  # what some element takes to its own negative averages to zero
            negated = ((source == torch.arange(source.shape[1])) & (sign < 0)).any(0)
            sign = sign.gather(0, by[None])[0] * ~negated
        self.units = _Orbits(cell, sign)
        self.is_identity = self.units.is_identity and (self.filters is None or self.filters.is_identity)

    def forward(self, value: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # which fuses the steps, and takes no function with a forward derivative
            return self.average(value)
        result: Tensor = _Projection.apply(value, self)  # type: ignore[no-untyped-call]  # torch's own
        return result

    def right_inverse(self, value: Tensor) -> Tensor:
        return self.average(value)

    def average(self, value: Tensor, *, rescale: bool = False) -> Tensor:
        parts = []
        if self.filters is not None:
            parts.append(self.filters.average(value[: self.regular], rescale))
        if self.regular < len(value):
            parts.append(self.units.average(value[self.regular :], rescale))
        return torch.cat(parts) if len(parts) > 1 else parts[0]


class _Orbits(nn.Module):
    """Averages over the orbits of entries, along the last axis.

    Args:
        cell: Which orbit an entry is in, shape ``(n,)``, int64.
        sign: What an entry is multiplied by to be as the others of its orbit, shape ``(n,)``; None for ones.
    """

    members: Tensor
    cell: Tensor
    sign: Tensor | None
    member_sign: Tensor

    def __init__(self, cell: Tensor, sign: Tensor | None) -> None:
        super().__init__()
        _, cell, size = torch.unique(cell, return_inverse=True, return_counts=True)
        cell = size.argsort(stable=True).argsort()[cell]  # orbits of one size stand together
        entries = cell.argsort(stable=True)
        members: list[Tensor] = []
        self.blocks: list[tuple[int, int, int]] = []
        """Where the orbits of one size start, that size, and how many they are."""
        for length, number in zip(*(counts.tolist() for counts in torch.unique(size, return_counts=True)), strict=True):
            start = sum(len(part) for part in members)
            self.blocks.append((start, length, number))
            members.append(entries[start : start + length * number].view(number, length).T.flatten())
        together = torch.cat(members)
        self.is_identity = sign is None and len(cell) == len(size)
        self.in_order = torch.equal(together, torch.arange(len(cell)))
        self.register_buffer("members", together, persistent=False)
        self.register_buffer("cell", cell, persistent=False)
        self.register_buffer("sign", sign, persistent=False)
        self.register_buffer("member_sign", None if sign is None else sign[together], persistent=False)

    def average(self, rows: Tensor, rescale: bool) -> Tensor:
        if self.is_identity:
            return rows
        aligned = rows.reshape(-1, len(self.cell))
        if not self.in_order:
            aligned = aligned.index_select(1, self.members)
        if self.sign is not None:
            aligned = aligned * self.member_sign
        means = []
        for start, size, number in self.blocks:
            entries = aligned[:, start : start + size * number].view(-1, size, number)
            mean = entries.mean(1)  # which torch takes in float32 or wider
            if rescale:
                before, after = (each.float().square().mean() for each in (entries, mean))
                mean = mean * (before / after.clamp_min(torch.finfo(after.dtype).tiny)).sqrt()
            means.append(mean)
        spread = (torch.cat(means, 1) if len(means) > 1 else means[0]).index_select(1, self.cell)
        return (spread if self.sign is None else spread * self.sign).view(rows.shape)


class _Projection(torch.autograd.Function):
    """The average, which is linear and its own adjoint, so that no derivative of its steps is needed."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, average: _Average) -> Tensor:
        return average.average(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, _Average], output: Tensor) -> None:
        ctx.average = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        average = ctx.average if torch.is_grad_enabled() else ctx.average.average
        return average(gradient), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        moved: Tensor = ctx.average(tangent)
        return moved


def _let_go(layer: nn.Module, parameter: str, *, leave_parametrized: bool = True) -> None:
    """Removes the parametrisation from this layer only: torch would from its copies too, which share its class."""
    shared = type(layer)
    own = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
    layer.__class__ = type(shared.__name__, shared.__bases__, own)
    remove_parametrizations(layer, parameter, leave_parametrized)


def _names(stack: list[tuple[str, nn.Linear]]) -> list[str]:
    return [name for name, _ in stack]


def _check_arguments(model: nn.Module, group: FiniteGroup, inputs: Tensor) -> None:
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"model must be a torch.nn.Module that is not scripted: got {type(model).__name__}.")
    if not isinstance(group, FiniteGroup) or isinstance(group, OnKeys):
        raise TypeError(f"Weights are averaged over a FiniteGroup that acts on one tensor: got {group!r}.")
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a tensor of samples, shape (N, ...): got {type(inputs).__name__}.")
    if inputs.ndim == 0 or len(inputs) == 0:
        raise ValueError(f"inputs must hold at least one sample, shape (N, ...): got shape {tuple(inputs.shape)}.")
    if not group.exact:
        raise ValueError(
            f"Weights are symmetric under a group that moves and negates entries: {group!r} interpolates or rounds. "
            "Regularise with a loss, or tie the first layer, for approximate invariance."
        )
    if any(map(is_lazy, model.parameters())):
        raise ValueError(f"{type(model).__name__} has lazy layers, which have no weights yet: call it once before.")


def _linear_layers(model: nn.Module, inputs: Tensor) -> list[tuple[str, nn.Linear]]:
    """The linear layers in the order in which the data meets them."""
    model(inputs)  # what a first forward does besides (a tie finds its layer) is not to be met
    met: list[tuple[str, nn.Module]] = []
    hooks = [
        module.register_forward_hook(lambda module, *_, name=name: met.append((name, module)))
        for name, module in model.named_modules()
    ]
    try:
        outputs = model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        came = outputs.dtype if isinstance(outputs, Tensor) else type(outputs).__name__
        raise TypeError(f"The model must return one tensor of floating-point numbers: got {came}.")
    stack = [(name, module) for name, module in met if isinstance(module, nn.Linear)]
    if not stack:
        raise ValueError(
            f"The data meets no torch.nn.Linear in {type(model).__name__}, and only those are made symmetric. "
            "Symmetrise before you compile, or tie the first layer."
        )
    weights = [id(layer._parameters.get("weight")) for _, layer in stack]
    for number, (name, layer) in enumerate(stack):
        if is_parametrized(layer) or not isinstance(layer._parameters.get("weight"), nn.Parameter):
            raise ValueError(f"Layer {name!r} must have a plain weight: it is parametrised. Remove that first.")
        if weights.index(weights[number]) < number:
            raise ValueError(f"Each layer must be used once, with a weight of its own: {name!r} is used again.")
    others = [
        f"{name!r} ({type(module).__name__})"
        for name, module in dict(met).items()
        if not isinstance(module, nn.Linear)
        and (is_parametrized(module) or any(p.ndim > 1 for p in module.parameters(recurse=False)))
    ]
    if others:
        raise ValueError(
            f"Only torch.nn.Linear layers {_names(stack)} are made symmetric: the data also meets weights in "
            f"{', '.join(others)}. Tie the first layer, or symmetrise a part of the model that has linear layers only."
        )
    return stack
