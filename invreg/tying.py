"""How is an existing model made invariant?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy
from typing_extensions import Self

from invreg.calls import Key
from invreg.groups import FiniteGroup, OnKeys
from invreg.pooling import Reduction, check_pooling, expand, pool
from invreg.preserve import preserved
from invreg.tied_linear import MOST_ENTRIES, OrbitLinear, matched_sources

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

    An ``nn.Linear`` costs less, where the group permutes the entries of samples and what comes before the layer only
    moves them and does the same to each. Nothing is expanded then but small batches; the layer's output over the orbit
    is computed from the Fourier coefficients of its weight over the group, at 1.5 times the plain layer's products for
    ``CyclicRotation(4)`` and ``Dihedral(4)``, and fewer than the plain layer's for ``"mean"``. It is invariant up to
    rounding, as matrices are multiplied in another order. It is for samples of one shape, in float32 or float64
    without autocast, and a layer without a parametrisation or hooks of others before its output: all else expands, and
    from the first such data or hook on for good. Hooks on the layer see an empty input.

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
        self._linear: _Linear | None = None
        """Where nothing is expanded but at the layer, if at all."""
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
        if self._linear is not None and self._linear.holds(model, self.layer, call.data, self._leave_layer):
            return None
        expanded = call.expanded(self.group) if self._expanded_argument is None else None
        if self._linear is not None:
            self._linear = None
        return expanded

    def _enter_layer(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the layer's forward, where the orbit is made there."""
        if self._looking:
            return None
        if self._linear is not None and isinstance(layer, nn.Linear):
            return self._linear.enter(layer, args, kwargs)
        if self._expanded_argument is None:
            return None
        return _Call(args, kwargs, self._expanded_argument).expanded(self.group)

    def _leave_layer(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor:
        """After the layer's forward: pools over the orbit."""
        if self._linear is not None and isinstance(layer, nn.Linear):
            data = self._linear.not_expanded(layer, args, kwargs)
            if data is not None:
                return self._linear.orbit.pooled(data, layer)
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
                self._expand_at_linear_layer(call, met)
            except BaseException:
                self._forget_layer()
                raise

    def _forget_layer(self) -> None:
        self.layer = self._linear = None
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
            self._hooks.append(layer.register_forward_hook(self._leave_layer, with_kwargs=True))
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

    def _expand_at_linear_layer(self, call: _Call, met: list[_Met]) -> None:
        """Spares the orbit of the data where the layer is linear and what it receives are the data's entries."""
        assert self.layer is not None
        layer, argument = self._model.get_submodule(self.layer), met[0].argument
        meets = [each.name for each in met].count(self.layer)
        entered = self._expanded_argument is not None
        if layer is self._model or meets > 1 or argument is None:
            return
        if not _is_plain_linear(layer, self._leave_layer, entered=entered):
            return
        sources = self._sources_at(layer, argument, call)
        if sources is None:
            return
        try:
            orbit = OrbitLinear(self.group, sources, self.reduction)
        except ValueError:
            return
        self._linear = _Linear(orbit, argument, call.data.shape[1:])
        if not entered:
            self._hooks.append(layer.register_forward_pre_hook(self._enter_layer, with_kwargs=True))

    def _sources_at(self, layer: nn.Module, argument: Key, call: _Call) -> Tensor | None:
        """Where the entries of the layer's input come from under each element; None where more happens to them.

        That is so if what comes before the layer only moves them and does the same to each, in both modes, without
        random numbers, whatever values parameters and buffers have.
        """
        x = call.data
        entries = x.shape[1:].numel()
        if not self.group.exact or self.group.order * entries > MOST_ENTRIES or x.dtype not in _PRECISE:
            return None
        numbered = torch.stack([torch.randperm(entries) + 1.0 for _ in range(2)]) / entries - 0.5
        samples = numbered.view(2, *x.shape[1:]).to(x)
        trial = call.replaced(self.group.orbit(samples).transpose(0, 1).flatten(0, 1))
        tensors = {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}
        found: list[Tensor] = []
        noisy: dict[str, Tensor] = {}
        for training, noise in ((False, False), (False, True), (True, True)):
            if noise and not noisy:
                noisy = {
                    name: tensor + torch.rand_like(tensor)
                    for name, tensor in tensors.items()
                    if not is_lazy(tensor) and tensor.is_floating_point()
                }
            with preserved(self._model, training=training):
                received = self._received(layer, argument, trial, noisy)
            if received is None or received.ndim != 2 or len(received) != len(trial.data):
                return None
            sources = matched_sources(received.view(2, -1, received.shape[1]))
            if sources is None or (found and not torch.equal(sources, found[0])):
                return None
            found.append(sources)
        return found[0]

    def _received(self, layer: nn.Module, argument: Key, call: _Call, tensors: dict[str, Tensor]) -> Tensor | None:
        """What the layer receives, with these parameters and buffers; None if that is random or fails."""

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached(_Call(args, kwargs, argument).data)

        hook = layer.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
        self._looking = True
        before = _random_states(call.data.device)
        try:
            functional_call(self._model, tensors, call.args, call.kwargs)
        except _Reached as reached:
            after = _random_states(call.data.device)
            return reached.data if all(map(torch.equal, before, after)) else None
        except Exception:  # the trial, not the model, may be at fault: nothing is spared then
            return None
        finally:
            self._looking = False
            hook.remove()
        return None

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


@dataclass(frozen=True)
class _Linear:
    """How a linear layer is tied whose input holds the entries of the data, and as long as it does.

    What happens at the layer depends on its arguments alone, so that threads and a forward that is done again for a
    checkpoint do not get in each other's way.
    """

    orbit: OrbitLinear
    argument: Key
    sample_shape: torch.Size

    def holds(self, model: nn.Module, name: str | None, x: Tensor, leave: Callable[..., Tensor]) -> bool:
        """Whether data and layer are still such as they were."""
        if x.shape[1:] != self.sample_shape or not x.is_floating_point():
            return False
        return torch.compiler.is_compiling() or _is_plain_linear(model.get_submodule(name or ""), leave, entered=True)

    def enter(self, layer: nn.Linear, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the layer's forward: expands its input, or keeps it from work that would be thrown away."""
        call = _Call(args, kwargs, self.argument)
        x = call.data
        if not self.orbit.applies(x, layer.weight):
            call = call.replaced(self.orbit.expanded(x))
        elif not torch.compiler.is_compiling():  # a compiler leaves out by itself what is not used
            nothing = x.new_empty(0, x.shape[1])
            nothing._invreg_rows = x  # type: ignore[attr-defined]
            call = call.replaced(nothing)
        return call.args, call.kwargs

    def not_expanded(self, layer: nn.Linear, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """After the layer's forward: its input, unless that was expanded."""
        x = _Call(args, kwargs, self.argument).data
        if torch.compiler.is_compiling():
            return x if self.orbit.applies(x, layer.weight) else None
        rows: Tensor | None = getattr(x, "_invreg_rows", None)
        return rows


class _Reached(BaseException):
    """Ends a trial forward where the layer is reached; no error, which the model's own code might catch."""

    def __init__(self, data: Tensor) -> None:
        super().__init__()
        self.data = data


_PRECISE = (torch.float32, torch.float64)
"""Dtypes in which a sample's entries can all be told apart."""


def _is_plain_linear(layer: nn.Module, leave: Callable[..., Tensor], *, entered: bool) -> bool:
    """Whether a layer is linear and nothing of others' comes between its input and the hook that pools its output."""
    return (
        type(layer) is nn.Linear
        and next(iter(layer._forward_hooks.values()), None) == leave
        and len(layer._forward_pre_hooks) == entered
        and not layer._backward_hooks
        and not layer._backward_pre_hooks
    )


def _random_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


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
