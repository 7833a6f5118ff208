"""How is an existing model made invariant?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from typing_extensions import Self

from invreg.groups import FiniteGroup, OnKeys
from invreg.pooling import Reduction, check_pooling, expand, pool
from invreg.preserve import preserved

__all__ = ["TiedFirstLayer", "tie_first_layer"]


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
    gradients, that the model has become invariant. If it has not, each forward raises until the tie is removed. Call
    the model once before you export it or compile it as one graph.

    Copies of a tied model are tied as well; its state dict is that of the plain model and does not tie another one.
    Outputs that shall move with the input (segmentation) cannot come out of an invariant first layer.

    Args:
        model: The model. The first tensor among its arguments is the data.
        group: A finite group that acts on the data.
        layer: The name of the layer to pool after, or the module itself; any submodule will do, a block too. None
            picks the first one with weights that returns one tensor.
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
            where it is traced into one graph.

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
        check_pooling(group, reduction)
        if isinstance(group, OnKeys):
            raise TypeError(
                f"A layer is tied to a group that acts on one tensor: got {group!r}. Use GroupPooling inside."
            )
        if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
            raise TypeError(
                f"model must be a torch.nn.Module whose layers take hooks, so tie it before you script it: "
                f"got {type(model).__name__}."
            )
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
        self._forget_layer()
        while self._hooks:
            self._hooks.pop().remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        layer = repr(self.layer) if self.layer is not None else "not met yet" if self._hooks else "removed"
        return f"TiedFirstLayer({self.group!r}, reduction={self.reduction!r}, layer: {layer})"

    def _enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the model's forward: expands the data, unless the layer itself will."""
        if self._looking:
            return None
        key = _first_tensor(args, kwargs)
        if key is None:
            raise ValueError("A model with a tied layer takes its data as a tensor argument: got none.")
        call = _Call(args, kwargs, key)
        if self.layer is None:
            if torch.compiler.is_compiling():
                raise RuntimeError("Call a model with a tied layer once before you compile or export it.")
            if len(call.data) == 0:
                return None  # an empty batch shows nothing, and its orbit is empty too
            self._tie(call)
        return call.expanded(self.group) if self._expanded_argument is None else None

    def _enter_layer(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the layer's forward, where the orbit is made there."""
        assert self._expanded_argument is not None
        return _Call(args, kwargs, self._expanded_argument).expanded(self.group)

    def _leave_layer(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor:
        """After the layer's forward: pools over the orbit."""
        return pool(output, self.group, self.reduction)

    def _tie(self, call: _Call) -> None:
        """Finds the layer on the first data, hooks it, and checks that the model is now invariant.

        Whatever goes wrong, the model stays to be tied: the next forward tries again.
        """
        with preserved(self._model, training=False), torch.no_grad():
            torch.manual_seed(0)
            x, gx = self._trial_data(call.data)
            met, plain = self._look(call)
            try:
                self._hook_first(met, lambda: self._check(call.replaced(x), call.replaced(gx), met, plain))
            except BaseException:
                self._forget_layer()
                raise

    def _forget_layer(self) -> None:
        self.layer = None
        while len(self._hooks) > 1:
            self._hooks.pop().remove()

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

    def _look(self, call: _Call) -> tuple[list[_Met], Tensor | None]:
        """The layers with weights, or the one wanted, in the order in which they finish; and the model's output."""
        met: list[_Met] = []

        def note(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                # Only now is it known, of a lazy module whether it has weights, of any whether it returns one tensor.
                if self._wanted is None and not (_has_weights(module) and isinstance(output, Tensor)):
                    return
                receives = [key for key, value in _arguments(args, kwargs) if value is call.data]
                met.append(_Met(name, receives[0] if receives else _first_tensor(args, kwargs), bool(receives)))

            return hook

        modules = dict(self._model.named_modules(remove_duplicate=self._wanted is None))
        names = _layer_names(self._model) if self._wanted is None else [self._wanted]
        hooks = [modules[name].register_forward_hook(note(name), with_kwargs=True) for name in names]
        self._looking = True
        try:
            return met, _first_output(self._model(*call.args, **call.kwargs))
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
        failures = []
        for place in places:
            self.layer, self._expanded_argument = first.name, place
            self._hooks.append(layer.register_forward_hook(self._leave_layer))
            if place is not None:
                self._hooks.append(layer.register_forward_pre_hook(self._enter_layer, with_kwargs=True))
            try:
                return check()
            except torch.cuda.OutOfMemoryError:
                raise
            except Exception as failure:
                failures.append(failure)
                self._forget_layer()
        raise failures[0]

    def _check(self, at_x: _Call, at_gx: _Call, met: list[_Met], plain: Tensor | None) -> None:
        """Raises unless the tied model returns as many rows as before, and the same at ``x`` and at ``gx``."""
        listed = f"The data meets these layers with weights, in order: {[layer.name for layer in met]}."
        outputs = []
        for call in (at_x, at_gx):
            torch.manual_seed(0)  # what is random in the model must not look like a lack of invariance
            try:
                outputs.append(_first_output(self._model(*call.args, **call.kwargs)))
            except torch.cuda.OutOfMemoryError:  # says nothing about the model
                raise
            except Exception as error:
                raise RuntimeError(
                    f"The model fails with its layer {self.layer!r} tied: {str(error).rstrip('.')}. All data must go "
                    "through the tied layer, and code before it must not hold on to the number of rows, "
                    f"{self.group.order} per sample there. {listed} Name another module with layer=, or use "
                    "GroupPooling inside the model."
                ) from error
        y, gy = outputs
        if y is None or gy is None or plain is None:
            return
        if y.shape != plain.shape:
            raise ValueError(
                f"With its layer {self.layer!r} tied, the model returns outputs of shape {tuple(y.shape)} and not "
                f"{tuple(plain.shape)}. {listed} Name another module with layer=, or use GroupPooling inside the model."
            )
        difference, scale = (y - gy).abs().max(), y.abs().max()
        if self.group.exact and difference > torch.finfo(y.dtype).eps ** 0.5 * scale:
            raise ValueError(
                f"With its layer {self.layer!r} tied, the model is still not invariant to {self.group!r}: outputs move "
                f"by {float(difference / scale):.1%} of the largest. All data must go through the tied layer. {listed} "
                "Name the module that holds all those that the data meets at once with layer=."
            )


Key = int | str
"""Where an argument of a forward is: its position, or its keyword."""


@dataclass(frozen=True)
class _Call:
    """The arguments of a forward, and which of them is the data."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    key: Key

    @property
    def data(self) -> Tensor:
        value: Tensor = self.args[self.key] if isinstance(self.key, int) else self.kwargs[self.key]
        return value

    def replaced(self, data: Tensor) -> _Call:
        """The same with other data."""
        if isinstance(self.key, int):
            return _Call((*self.args[: self.key], data, *self.args[self.key + 1 :]), self.kwargs, self.key)
        return _Call(self.args, {**self.kwargs, self.key: data}, self.key)

    def expanded(self, group: FiniteGroup) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with the orbit of the data in its place, as a hook returns them."""
        call = self.replaced(expand(self.data, group))
        return call.args, call.kwargs


class _Met(NamedTuple):
    """A layer that finished: its name, the argument that holds its data, and whether that is the model's own."""

    name: str
    argument: Key | None
    receives_data: bool


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


def _first_output(outputs: Any) -> Tensor | None:
    """The first floating-point tensor that a model returned, by itself or in a sequence, a mapping or a dataclass."""
    if isinstance(outputs, Mapping):
        outputs = tuple(outputs.values())
    elif is_dataclass(outputs):
        outputs = tuple(vars(outputs).values())
    elif not isinstance(outputs, (tuple, list)):
        outputs = (outputs,)
    return next((value for value in outputs if isinstance(value, Tensor) and value.is_floating_point()), None)
