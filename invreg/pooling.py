"""How do I build invariance into a model?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
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
        outputs = self.layer(_expand(x, self.group))
        return _pool(outputs, self.group, self.reduction, rows=self.group.order * x.shape[0])

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
    gradients, that the model has become invariant, and takes the tie back if it has not. Call the model once before
    you compile or export it.

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
        RuntimeError: The first forward raises it where the tied model fails, the model's error being the cause, and
            where it is compiled.

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
        if self._wanted is None and not any(map(_has_weights, model.modules())):
            raise ValueError(
                f"{type(model).__name__} has no layer with weights to tie. Name a module with layer=; it has "
                f"{[name for name, _ in model.named_modules() if name]}."
            )
        self._looking = False
        self._expanded_argument: Key | None = None
        """Which of the layer's arguments is expanded; None where the model's data is."""
        self._hooks = [model.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True)]

    def remove(self) -> None:
        """Takes the tie back: the model computes what it did before."""
        self.layer = None
        self._remove_hooks(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        layer = "not met yet" if self.layer is None else repr(self.layer)
        return f"TiedFirstLayer({self.group!r}, reduction={self.reduction!r}, layer: {layer})"

    def _remove_hooks(self, start: int) -> None:
        while len(self._hooks) > start:
            self._hooks.pop().remove()

    def _enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the model's forward: expands the data, unless the layer itself will."""
        if self._looking:
            return None
        key = _first_tensor(args, kwargs)
        if key is None:
            raise ValueError("A model with a tied layer takes its data as a tensor argument: got none.")
        if self.layer is None:
            if torch.compiler.is_compiling():
                raise RuntimeError("Call a model with a tied layer once before you compile or export it.")
            if len(_argument(args, kwargs, key)) == 0:
                return None  # an empty batch shows nothing, and its orbit is empty too
            self._tie(args, kwargs, key)
        return self._expand(args, kwargs, key) if self._expanded_argument is None else None

    def _enter_layer(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the layer's forward, where the orbit is made there."""
        assert self._expanded_argument is not None
        return self._expand(args, kwargs, self._expanded_argument)

    def _leave_layer(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor:
        """After the layer's forward: pools over the orbit."""
        return _pool(output, self.group, self.reduction)

    def _expand(self, args: tuple[Any, ...], kwargs: dict[str, Any], key: Key) -> Call:
        return _with_argument(args, kwargs, key, _expand(_argument(args, kwargs, key), self.group))

    def _tie(self, args: tuple[Any, ...], kwargs: dict[str, Any], key: Key) -> None:
        """Finds the layer on the first data, hooks it, and checks that the model is now invariant.

        If the group cannot act on the data or the model fails as it is, the tie waits for better data.
        """
        with preserved(self._model, training=False), torch.no_grad():
            torch.manual_seed(0)
            x, gx = self._trial_data(_argument(args, kwargs, key))
            met, plain = self._look(args, kwargs, _argument(args, kwargs, key))
            try:
                self._hook_first(met, lambda: self._check(args, kwargs, key, x, gx, met, plain))
            except BaseException:
                self.remove()
                raise

    def _trial_data(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Data to check invariance on, and its image; noise in its place if no element moves the data."""
        if self.group.order == 1:
            return x, x
        g = self.group.sample_non_identity(len(x), 1)[0].to(x.device)
        gx = self.group.act(g, x)
        if not torch.equal(x, gx) or not x.is_floating_point():
            return x, gx
        noise = torch.randn_like(x)
        return noise, self.group.act(g, noise)

    def _look(self, args: tuple[Any, ...], kwargs: dict[str, Any], data: Tensor) -> tuple[list[_Met], Tensor | None]:
        """The layers with weights, or the one wanted, in the order in which they finish; and the model's output."""
        met: list[_Met] = []

        def note(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                if self._wanted is None and not _has_weights(module):  # only now, as a lazy module has none before
                    return
                receives = [key for key, value in _arguments(args, kwargs) if value is data]
                met.append(_Met(name, receives[0] if receives else _first_tensor(args, kwargs), bool(receives)))

            return hook

        modules = dict(self._model.named_modules(remove_duplicate=self._wanted is None))
        names = _layer_names(self._model) if self._wanted is None else [self._wanted]
        hooks = [modules[name].register_forward_hook(note(name), with_kwargs=True) for name in names]
        self._looking = True
        try:
            return met, _first_output(self._model(*args, **kwargs))
        finally:
            self._looking = False
            for hook in hooks:
                hook.remove()

    def _hook_first(self, met: list[_Met], check: Callable[[], None]) -> None:
        """Hooks the first layer that was met so that the check passes."""
        if not met:
            wanted = "with weights" if self._wanted is None else repr(self._wanted)
            raise ValueError(
                f"The data meets no layer {wanted} in {type(self._model).__name__}. Name a module that the forward "
                f"calls with layer=, one of {[name for name, _ in self._model.named_modules() if name]}."
            )
        first = met[0]
        layer = self._model.get_submodule(first.name)
        # Where the layer receives the very tensor that entered the model, the orbit is made right there, since code
        # in between may have noted the number of rows. Otherwise it is made where the data enters; a model that fails
        # so may still do with an orbit made at the layer, if the group acts there as it does on the data.
        places = [first.argument] if first.receives_data else [None, first.argument]
        if layer is self._model:  # it cannot be hooked anew once its forward has begun
            places = [None]
        start, failures = len(self._hooks), []
        self.layer = first.name
        for self._expanded_argument in places:
            self._hooks.append(layer.register_forward_hook(self._leave_layer))
            if self._expanded_argument is not None:
                self._hooks.append(layer.register_forward_pre_hook(self._enter_layer, with_kwargs=True))
            try:
                return check()
            except Exception as failure:
                failures.append(failure)
                self._remove_hooks(start)
        raise failures[0]

    def _check(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        key: Key,
        x: Tensor,
        gx: Tensor,
        met: list[_Met],
        plain: Tensor | None,
    ) -> None:
        """Raises unless the tied model returns as many rows as before, and the same at ``x`` and at ``gx``."""
        listed = f"The data meets these layers with weights, in order: {[layer.name for layer in met]}."
        outputs = []
        for data in (x, gx):
            torch.manual_seed(0)  # what is random in the model must not look like a lack of invariance
            trial_args, trial_kwargs = _with_argument(args, kwargs, key, data)
            try:
                outputs.append(_first_output(self._model(*trial_args, **trial_kwargs)))
            except Exception as error:
                raise RuntimeError(
                    f"The model fails with its layer {self.layer!r} tied: {str(error).rstrip('.')}. All data must go "
                    "through the tied layer, and code before it must not hold on to the number of rows, "
                    f"{self.group.order} per sample there. {listed} Name another module with layer=, or use "
                    "GroupPooling inside the model."
                ) from error
        at_x, at_gx = outputs
        if at_x is None or at_gx is None or plain is None:
            return
        if at_x.shape != plain.shape:
            raise ValueError(
                f"With its layer {self.layer!r} tied, the model returns outputs of shape {tuple(at_x.shape)} and not "
                f"{tuple(plain.shape)}. {listed} Name another module with layer=, or use GroupPooling inside the model."
            )
        difference, scale = (at_x - at_gx).abs().max(), at_x.abs().max()
        if self.group.exact and difference > torch.finfo(at_x.dtype).eps ** 0.5 * scale:
            raise ValueError(
                f"With its layer {self.layer!r} tied, the model is still not invariant to {self.group!r}: outputs move "
                f"by {float(difference / scale):.1%} of the largest. All data must go through the tied layer. {listed} "
                "Name the module that holds all those that the data meets at once with layer=."
            )


Key = int | str
"""Where an argument of a forward is: its position, or its keyword."""

Call = tuple[tuple[Any, ...], dict[str, Any]]


class _Met(NamedTuple):
    """A layer that finished: its name, the argument that holds its data, and whether that is the model's own."""

    name: str
    argument: Key | None
    receives_data: bool


def _check_settings(group: FiniteGroup, reduction: str | Reduction) -> None:
    if not isinstance(group, FiniteGroup):
        raise TypeError(f"Pooling runs over all elements of a FiniteGroup: got {group!r}.")
    if not (callable(reduction) or (isinstance(reduction, str) and reduction in _REDUCTIONS)):
        raise ValueError(f"reduction must be one of {list(_REDUCTIONS)} or a callable: got {reduction!r}.")


def _expand(x: Tensor, group: FiniteGroup) -> Tensor:
    return group.orbit(x).flatten(0, 1)


def _pool(outputs: Tensor, group: FiniteGroup, reduction: str | Reduction, rows: int | None = None) -> Tensor:
    """Pools outputs that have ``order`` rows per sample; ``rows`` in all, where that is known."""
    fits = isinstance(outputs, Tensor) and outputs.ndim > 0 and outputs.shape[0] % group.order == 0
    if not fits or rows not in (None, outputs.shape[0]):
        came = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"The pooled layer must return one tensor, with a row for each of its input's, {group.order} per sample: "
            f"got {came}."
        )
    reduce = reduction if callable(reduction) else _REDUCTIONS[reduction]
    return reduce(outputs.reshape(group.order, outputs.shape[0] // group.order, *outputs.shape[1:]))


def _has_weights(module: nn.Module) -> bool:
    """Whether a module has a matrix or a kernel of its own; scales and shifts of a normalisation are none."""
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return False
    weights = module.parameters(recurse=False)
    return nn.utils.parametrize.is_parametrized(module) or any(is_lazy(w) or w.ndim > 1 for w in weights)


def _layer_names(model: nn.Module) -> list[str]:
    """The names of all modules but those that compute a parametrised weight."""
    parametrizations = {
        part
        for module in model.modules()
        if isinstance(module, nn.utils.parametrize.ParametrizationList)
        for part in module.modules()
    }
    return [name for name, module in model.named_modules() if module not in parametrizations]


def _name_of(layer: str | nn.Module | None, model: nn.Module) -> str | None:
    if layer is None:
        return None
    names: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    for name, module in names.items():
        if layer == name or layer is module:
            return name
    came = repr(layer) if isinstance(layer, str) else f"a {type(layer).__name__} that is not part of it"
    raise ValueError(f"layer must be a submodule of {type(model).__name__}, one of {list(names)}: got {came}.")


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[Key, Any]]:
    return [*enumerate(args), *kwargs.items()]


def _first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Key | None:
    for key, value in _arguments(args, kwargs):
        if isinstance(value, Tensor):
            return key
    return None


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], key: Key) -> Tensor:
    value: Tensor = args[key] if isinstance(key, int) else kwargs[key]
    return value


def _with_argument(args: tuple[Any, ...], kwargs: dict[str, Any], key: Key, value: Tensor) -> Call:
    """The arguments with one of them replaced."""
    if isinstance(key, int):
        return (*args[:key], value, *args[key + 1 :]), kwargs
    return args, {**kwargs, key: value}


def _first_output(outputs: Any) -> Tensor | None:
    """The first floating-point tensor that a model returned, by itself or in a sequence, a mapping or a dataclass."""
    if isinstance(outputs, Mapping):
        outputs = tuple(outputs.values())
    elif is_dataclass(outputs):
        outputs = tuple(vars(outputs).values())
    elif not isinstance(outputs, (tuple, list)):
        outputs = (outputs,)
    return next((value for value in outputs if isinstance(value, Tensor) and value.is_floating_point()), None)
