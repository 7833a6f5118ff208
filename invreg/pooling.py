"""How do I build invariance into a model?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Self

from invreg.groups import FiniteGroup
from invreg.preserve import preserved

__all__ = ["GroupPooling", "Reduction", "TiedFirstLayer", "tie_first_layer"]

Reduction = Callable[[Tensor], Tensor]
"""Takes outputs over an orbit, ``(order, N, ...)``, to ``(N, ...)``; their order along axis 0 must not matter."""

_REDUCTIONS: dict[str, Reduction] = {"max": lambda orbit: orbit.amax(0), "mean": lambda orbit: orbit.mean(0)}


class GroupPooling(nn.Module):
    r"""Any layer made invariant: it is applied to the whole orbit of its input and the results are pooled.

    .. math:: y(x) = \max_{g \in G} \ell(gx)

    Exactly invariant for every exact group, since the orbit of ``gx`` is that of ``x`` in another order. It costs as
    much as ``group.order`` such layers.

    Args:
        layer: The layer, from inputs ``(M, ...)`` to outputs ``(M, ...)``.
        group: A finite group that acts on the inputs.
        reduction: How to pool: ``"max"``, ``"mean"`` or a callable from ``(order, N, ...)`` to ``(N, ...)`` that
            does not depend on the order along axis 0.

    Raises:
        TypeError: ``group`` is no finite group.
        ValueError: ``reduction`` is unknown.

    Source: The weight-tying baseline (WT) of Moskalev et al. (2023), section 4.1.

    Example:
        >>> from invreg import Flip
        >>> pooled = GroupPooling(torch.nn.Linear(3, 2), Flip())
        >>> x = torch.tensor([[1.0, 2.0, 3.0]])
        >>> bool((pooled(x) == pooled(x.flip(-1))).all())
        True
    """

    def __init__(
        self, layer: nn.Module, group: FiniteGroup, reduction: Literal["max", "mean"] | Reduction = "max"
    ) -> None:
        super().__init__()
        _check_settings(group, reduction)
        self.layer = layer
        self.group = group
        self.reduction = reduction

    def forward(self, x: Tensor) -> Tensor:
        """Pools the layer's outputs over the orbit.

        Args:
            x: Shape ``(N, ...)``.

        Returns:
            Shape ``(N, ...)``: the shape of the layer's outputs.

        Raises:
            ValueError: The group cannot act on inputs of this shape, or the layer returned another number of rows.
        """
        return _pool(self.layer(_expand(x, self.group)), self.group, self.reduction)

    def extra_repr(self) -> str:
        """The settings, for ``print``."""
        return f"{self.group!r}, reduction={self.reduction!r}"


def tie_first_layer(
    model: nn.Module,
    group: FiniteGroup,
    layer: str | nn.Module | None = None,
    reduction: Literal["max", "mean"] | Reduction = "max",
) -> TiedFirstLayer:
    """Makes a model exactly invariant by pooling its first layer over the group, without touching its code.

    From the next forward on, the model's input is expanded to its whole orbit and the output of the first layer with
    weights is pooled back, so that all later layers see one row per sample. Parameters, state-dict keys and optimisers
    stay the same; so does what comes before that layer (a flatten, a normalisation), which is applied to each
    transformed input. The first layer costs ``group.order`` times as much, everything after it the same.

    Which layer that is shows when data first comes through: the first module to finish that has weights of its own
    (two or more axes; normalisations do not count). That first forward also checks, in eval mode and without
    gradients, that the model has become invariant, and takes the tie back if it has not. Compile or export a model
    after its first forward.

    Args:
        model: The model. The first tensor among its arguments is the data.
        group: A finite group that acts on the data.
        layer: The name of the layer to pool after, or the module itself; any submodule will do, a block too. None
            picks the first one with weights.
        reduction: As in ``GroupPooling``.

    Returns:
        The tie: ``.layer`` names the layer once data has come through, ``.remove()`` undoes it, and as a context
        manager it lasts for the block.

    Raises:
        TypeError: ``model`` is no module or ``group`` no finite group.
        ValueError: No layer has weights, ``layer`` is not in the model, the model is tied already, or ``reduction``
            is unknown. The first forward raises it where the tied model is not invariant, listing the layers that
            the data meets.
        RuntimeError: The first forward raises it where the tied model fails, the model's error being the cause.

    Source: The weight-tying baseline (WT) of Moskalev et al. (2023), section 4.1.

    Example:
        >>> from invreg import CyclicRotation
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.Linear(32, 10))
        >>> tie = tie_first_layer(model, CyclicRotation(4))
        >>> x = torch.randn(5, 1, 8, 8)
        >>> torch.testing.assert_close(model(x), model(x.rot90(1, (-2, -1))))
        >>> tie.layer
        '1'
        >>> tie.remove()
    """
    return TiedFirstLayer(model, group, layer, reduction)


class TiedFirstLayer:
    """A tie between a model's first layer and a group. Made by ``tie_first_layer``, which documents it.

    Attributes:
        layer: Name of the layer that is pooled; None until data has come through the model.
    """

    def __init__(
        self,
        model: nn.Module,
        group: FiniteGroup,
        layer: str | nn.Module | None,
        reduction: Literal["max", "mean"] | Reduction,
    ) -> None:
        _check_settings(group, reduction)
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, whose layers have hooks: got {type(model).__name__}.")
        if any(
            isinstance(getattr(hook, "__self__", None), TiedFirstLayer) for hook in model._forward_pre_hooks.values()
        ):
            raise ValueError("The model's first layer is tied already: remove() that tie first, or tie to a product.")
        self.group = group
        self.reduction = reduction
        self.layer: str | None = None
        self._model = model
        self._wanted = _name_of(layer, model)
        self._candidates = {name: module for name, module in model.named_modules() if _has_weights(module)}
        if self._wanted is None and not self._candidates:
            raise ValueError(
                f"{type(model).__name__} has no layer with weights to tie. Name a module with layer=; it has "
                f"{[name for name, _ in model.named_modules() if name]}."
            )
        self._looking = False
        self._expands_at_layer = False
        self._hooks = [model.register_forward_pre_hook(self._enter, with_kwargs=True)]

    def remove(self) -> None:
        """Takes the tie back: the model computes what it did before."""
        while self._hooks:
            self._hooks.pop().remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        layer = "first seen at the next forward" if self.layer is None else repr(self.layer)
        return f"TiedFirstLayer({self.group!r}, reduction={self.reduction!r}, layer: {layer})"

    def _enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the model's forward: expands the data, unless the layer itself will."""
        if self._looking:
            return None
        if self.layer is None:
            self._tie(args, kwargs)
        return None if self._expands_at_layer else _map_data(args, kwargs, self._expand)

    def _enter_layer(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the layer's forward, where it receives the data itself."""
        return _map_data(args, kwargs, self._expand)

    def _leave_layer(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor:
        """After the layer's forward: pools over the orbit."""
        return _pool(output, self.group, self.reduction)

    def _expand(self, x: Tensor) -> Tensor:
        return _expand(x, self.group)

    def _tie(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Finds the layer on the first data, hooks it, and checks that the model is now invariant."""
        with preserved(self._model, training=False), torch.no_grad():
            met = self._layers_met(args, kwargs)
            if not met:
                raise ValueError(
                    f"No layer to tie was met by the data in {type(self._model).__name__}: "
                    f"looked for {list(self._candidates) if self._wanted is None else self._wanted!r}. Name a module "
                    "that the forward calls with layer=."
                )
            name, receives_data = met[0]
            layer = self._model.get_submodule(name)
            self.layer = name
            # Where the layer receives the very tensor that entered the model, the orbit is made right there, since
            # code in between may have noted the number of rows. Otherwise it is made where the data enters; a model
            # that fails so may still do with an orbit made at the layer, if G acts there as it does on the data.
            # The model itself cannot be hooked anew once its forward has begun.
            places = [True] if receives_data else [False, True]
            failures: list[Exception] = []
            for at_layer in places if layer is not self._model else [False]:
                self._expands_at_layer = at_layer
                hooks = [layer.register_forward_hook(self._leave_layer)]
                if at_layer:
                    hooks.append(layer.register_forward_pre_hook(self._enter_layer, with_kwargs=True))
                try:
                    self._check_invariant(args, kwargs, [other for other, _ in met])
                except (RuntimeError, ValueError) as failure:
                    failures.append(failure)
                    for hook in hooks:
                        hook.remove()
                else:
                    self._hooks += hooks
                    return
            self.remove()
            raise failures[0]

    def _layers_met(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, bool]]:
        """Names of the candidates in the order in which they finish, and whether they receive the data itself."""
        data = _data(args, kwargs)
        met: list[tuple[str, bool]] = []

        def note(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                met.append((name, any(value is data for value in (*args, *kwargs.values()))))

            return hook

        candidates = (
            self._candidates if self._wanted is None else {self._wanted: self._model.get_submodule(self._wanted)}
        )
        hooks = [module.register_forward_hook(note(name), with_kwargs=True) for name, module in candidates.items()]
        self._looking = True
        try:
            self._model(*args, **kwargs)
        finally:
            self._looking = False
            for hook in hooks:
                hook.remove()
        return met

    def _check_invariant(self, args: tuple[Any, ...], kwargs: dict[str, Any], met: list[str]) -> None:
        """Compares the tied model's outputs on the data and on randomly transformed data."""
        x = _data(args, kwargs)
        g = self.group.sample(len(x), torch.Generator().manual_seed(0)).to(x.device)
        moved = _map_data(args, kwargs, lambda x: self.group.act(g, x))
        listed = f"The data meets these layers with weights, in order: {met}."
        try:
            at_x, at_gx = (self._first_output(*arguments) for arguments in ((args, kwargs), moved))
        except Exception as error:
            raise RuntimeError(
                f"The model fails with its layer {self.layer!r} tied: {error}. All data must go through the tied "
                f"layer, and code before it must not hold on to the number of rows, {self.group.order} per sample "
                f"there. {listed} Name another module with layer=, or use GroupPooling inside the model."
            ) from error
        if at_x is None or at_gx is None or not self.group.exact:
            return
        difference, scale = (at_x - at_gx).abs().max(), at_x.abs().max()
        if difference > torch.finfo(at_x.dtype).eps ** 0.5 * scale:
            raise ValueError(
                f"With its layer {self.layer!r} tied, the model is still not invariant to {self.group!r}: outputs move "
                f"by {float(difference / scale):.1%} of the largest. All data must go through the tied layer. {listed} "
                "Name the module that holds all those that the data meets at once with layer=."
            )

    def _first_output(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """The first floating-point tensor that the model returns, by itself or in a tuple, a list or a mapping."""
        torch.manual_seed(0)  # so that what is random in the model does not look like a lack of invariance
        outputs = self._model(*args, **kwargs)
        values = outputs.values() if isinstance(outputs, dict) else outputs
        found = [values] if isinstance(values, Tensor) else values
        return next((value for value in found if isinstance(value, Tensor) and value.is_floating_point()), None)


def _check_settings(group: FiniteGroup, reduction: str | Reduction) -> None:
    if not isinstance(group, FiniteGroup):
        raise TypeError(f"Pooling runs over all elements of a FiniteGroup: got {group!r}.")
    if not callable(reduction) and reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {list(_REDUCTIONS)} or a callable: got {reduction!r}.")


def _expand(x: Tensor, group: FiniteGroup) -> Tensor:
    return group.orbit(x).flatten(0, 1)


def _pool(outputs: Tensor, group: FiniteGroup, reduction: str | Reduction) -> Tensor:
    if not isinstance(outputs, Tensor) or outputs.ndim == 0 or len(outputs) % group.order:
        came = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"The pooled layer must return one tensor, with a row for each of its input's, {group.order} per sample: "
            f"got {came}."
        )
    reduce = reduction if callable(reduction) else _REDUCTIONS[reduction]
    return reduce(outputs.reshape(group.order, len(outputs) // group.order, *outputs.shape[1:]))


def _has_weights(module: nn.Module) -> bool:
    """Whether a module has a matrix or a kernel of its own; scales and shifts of a normalisation are none."""
    parametrized = nn.utils.parametrize.is_parametrized(module)
    return parametrized or any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))


def _name_of(layer: str | nn.Module | None, model: nn.Module) -> str | None:
    if layer is None:
        return None
    names: dict[str, nn.Module] = dict(model.named_modules())
    for name, module in names.items():
        if layer == name or layer is module:
            return name
    came = repr(layer) if isinstance(layer, str) else f"a {type(layer).__name__} that is not part of it"
    raise ValueError(f"layer must be a submodule of {type(model).__name__}, one of {list(names)}: got {came}.")


def _data(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The first tensor among a module's arguments."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise ValueError("A model with a tied layer takes its data as a tensor argument: got none.")


def _map_data(
    args: tuple[Any, ...], kwargs: dict[str, Any], function: Callable[[Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with a function applied to the first tensor."""
    data = _data(args, kwargs)
    moved = function(data)
    return (
        tuple(moved if value is data else value for value in args),
        {name: moved if value is data else value for name, value in kwargs.items()},
    )
