"""Does this group keep the laws, and if not, which one, and what is wrong?"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

import torch
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from torch import Tensor

from invreg.groups import FiniteGroup, Group, OnKeys
from invreg.groups.batch import Batch, map_tensors, rebuilt, tensors
from invreg.groups.probe import distinct_values, probe_shapes
from invreg.testing.laws import LAWS, ROUNDING, Violation
from invreg.testing.mistakes import likely_mistake
from invreg.testing.packed import Layout, packed
from invreg.testing.strategies import element_stacks, elements, inputs, smooth_inputs, smooth_probe
from invreg.testing.table import suspects

if TYPE_CHECKING:
    import pytest

_MAX_SAMPLES = 4
"""Largest batch that is tried, from one sample on."""

_WITHOUT_INPUTS = 10
"""How many times more examples the laws get that are about elements alone, which cost little."""

_USUAL = 8
"""How many draws from the group itself are tried besides."""

_SIDE = 112
"""Size of images that are chosen for a group that interpolates: large enough even for nearest neighbours."""

_FEWER = 50_000
"""Samples of more entries than this are tried less often."""

_FEWEST = 5
"""How many examples of large samples are tried all the same."""

_PRINTED = 16
"""Tensors of up to this many entries are printed whole."""


class LawError(AssertionError):
    """A group breaks a law. Raised by ``check_group``, which documents it.

    Args:
        message: Group, law, elements, input, what went wrong and the likely mistake, in words.
        law: The name of the law, a key of ``LAWS``.
        elements: The elements, by the names that the message gives them.
        inputs: The smallest batch that was found; None where the law needs none.

    Example:
        >>> error = LawError("Shift() breaks ...", law="closure", elements={"g": torch.tensor(1)}, inputs=None)
        >>> error.law
        'closure'
    """

    def __init__(self, message: str, *, law: str, elements: dict[str, Tensor], inputs: Batch | None) -> None:
        super().__init__(message)
        self.law = law
        self.elements = elements
        self.inputs = inputs

    def __reduce__(self) -> tuple[Any, ...]:  # so that it travels between processes
        make = partial(LawError, law=self.law, elements=self.elements, inputs=self.inputs)
        return make, self.args


def check_group(
    group: Group, example_input: Batch | None = None, *, tolerance: float = 0.1, max_examples: int = 100
) -> None:
    """Checks that a group keeps every law of a group that acts on batches; ``LAWS`` lists them.

    Elements and inputs are drawn by hypothesis: batches of one to four samples, with zeros, ties, huge and tiny
    values for an exact group, smooth ones for a group that interpolates. The same in every run; prints nothing.
    A hypothesis test that calls this suppresses ``HealthCheck.nested_given``.

    Args:
        group: The group.
        example_input: A batch, shape ``(N, ...)``, whose sample shape and dtype are those that the group is checked
            on; or a mapping or tuple of such batches, for a group that acts on several tensors. Whole numbers among
            those are checked as floating-point numbers where the group acts on them, as on masks, and stay as they
            are elsewhere. None tries a few shapes, in float64.
        tolerance: Largest error of an action that is not exact, relative to the norm of each sample. Two bilinear
            turns of images of 28 x 28 pixels are off by less than 0.1; fewer pixels or nearest neighbours make it more.
            For a group that only rounds, as products with matrices do, 1e-5 finds smaller mistakes.
        max_examples: Number of inputs that are tried per law, fewer of samples with more than 50,000 entries; laws
            about elements alone try ten times as many.

    Raises:
        LawError: The group breaks a law. The message names it, with the elements and the smallest input that break it
            and, where it can be told, the likely mistake; so do the attributes ``law``, ``elements``, ``inputs``.
        TypeError: ``group`` is no ``Group``, or lacks ``exact`` or ``order``; ``example_input`` holds no floating-point
            tensors; ``tolerance`` or ``max_examples`` is no number.
        ValueError: The group cannot act on ``example_input``, which is also said of an empty one; ``tolerance`` or
            ``max_examples`` is not positive.

    Example:
        >>> from invreg import CyclicRotation, Flip
        >>> check_group(CyclicRotation(4), torch.zeros(1, 2, 2))
        >>> class Reversed(Flip):
        ...     def inverse(self, g):
        ...         return 0 * g
        >>> check_group(Reversed(), torch.zeros(1, 2))
        Traceback (most recent call last):
        ...
        invreg.testing.check.LawError: Reversed(dim=-1) breaks the law "inverse", an element and its inverse cancel:
        g⁻¹g = e = gg⁻¹. With g = 1: g⁻¹g, which must be the identity, is 1, not 0.
        Likely mistake: inverse(1) should be 1, by which compose gives the identity.
    """
    with torch.inference_mode(False), torch.enable_grad():
        case = _case_of(group, example_input, tolerance, max_examples)
        for law in LAWS:
            _check(case, law)


def parametrize_with_laws(
    groups: Iterable[Group | tuple[Group, Batch | None]], *, tolerance: float = 0.1, max_examples: int = 100
) -> pytest.MarkDecorator:
    """Makes a pytest decorator that runs a test once per group and law, with the arguments ``group`` and ``law``.

    Args:
        groups: Groups, or pairs of a group and an example input as in ``check_group``.
        tolerance: As in ``check_group``.
        max_examples: As in ``check_group``.

    Returns:
        The decorator. The test calls ``law(group)``, which raises as ``check_group`` does.

    Raises:
        TypeError: ``groups`` is no list, an item neither a group nor such a pair, or as for ``check_group``.
        ValueError: ``groups`` is empty, which would test nothing, or as for ``check_group``.

    Example:
        >>> from invreg import CyclicRotation, SignFlip
        >>> @parametrize_with_laws([SignFlip(), (CyclicRotation(4), torch.zeros(1, 28, 28))])
        ... def test_laws(group, law):
        ...     law(group)
    """
    import pytest

    if isinstance(groups, Group):
        raise TypeError(f"parametrize_with_laws takes a list of groups: got {groups!r}. Write [{groups!r}].")
    _check_settings(tolerance, max_examples)
    pairs: list[tuple[Group, Batch | None]] = [item if isinstance(item, tuple) else (item, None) for item in groups]
    if not pairs:
        raise ValueError("parametrize_with_laws needs at least one group: got an empty list, which would test nothing.")
    for pair in pairs:
        if len(pair) != 2:
            raise TypeError(f"parametrize_with_laws takes groups, or pairs (group, example_input): got {pair!r}.")
        _check_types(*pair)
    return pytest.mark.parametrize(
        ("group", "law"),
        [
            pytest.param(
                group,
                partial(_check_law, law, example_input=example_input, tolerance=tolerance, max_examples=max_examples),
                id=f"{group!r}-{law}",
            )
            for group, example_input in pairs
            for law in LAWS
        ],
    )


# ------------------------------------------------------------------------------------------------ what is checked


@dataclass(frozen=True)
class _Case:
    """A group, and on what it is checked; of several tensors, ``layout`` makes one."""

    group: Group
    sample_shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    tolerance: float
    max_examples: int
    layout: Layout | None
    chosen: bool
    """Whether the sample shape was chosen here, since no example was given."""

    @property
    def examples(self) -> int:
        """How many inputs are tried."""
        share = min(1.0, _FEWER / torch.Size(self.sample_shape).numel()) ** 2
        return min(self.max_examples, max(_FEWEST, int(self.max_examples * share)))

    def batches(self, n: int) -> st.SearchStrategy[Tensor]:
        """Inputs of ``n`` samples that are fair to this group."""
        if self.group.exact:
            return inputs((n, *self.sample_shape), dtype=self.dtype).map(self._with_room)
        if self.layout is None:
            return smooth_inputs((n, *self.sample_shape), dtype=self.dtype).map(self._with_room)
        parts = [smooth_inputs((n, *shape), dtype=self.dtype) for shape in self.layout.shapes.values()]
        return st.tuples(*parts).map(self._together).map(self._with_room)

    def _with_room(self, x: Tensor) -> Tensor:
        """The batch, but so that sums over a sample do not overflow, which no law is about."""
        room = 4 * torch.Size(self.sample_shape).numel()
        return (x / room if x.abs().max() > torch.finfo(x.dtype).max / room else x).to(self.device)

    def probe(self) -> Tensor:
        """A sample that is not zero, nor the same under different elements if there is such a sample."""
        if self.group.exact:
            return distinct_values(self.sample_shape).to(self.device)
        shapes = [self.sample_shape] if self.layout is None else self.layout.shapes.values()
        parts = [smooth_probe(shape) for shape in shapes]
        return (parts[0] if self.layout is None else self._together(parts)).to(self.device)

    @staticmethod
    def _together(parts: Iterable[Tensor]) -> Tensor:
        return torch.cat([part.reshape(len(part), -1) for part in parts], dim=1)


def _check_types(group: object, example_input: object) -> None:
    if not isinstance(group, Group):
        given = f"the class {group.__name__}: write {group.__name__}(...)" if isinstance(group, type) else repr(group)
        raise TypeError(f"check_group checks a Group, e.g. CyclicRotation(4): got {given}.")
    name = type(group).__name__
    if not isinstance(getattr(group, "exact", None), bool):
        raise TypeError(f"{name} must set exact = True, if it only moves and negates entries, or exact = False.")
    if isinstance(group, FiniteGroup) and not isinstance(group.order, int):
        raise TypeError(f"{name} must set order, its number of elements: got {group.order!r}.")
    if example_input is None:
        return
    several = isinstance(example_input, (Mapping, tuple, list)) and len(example_input) > 0
    found: list[Any] = [tensor for _, tensor in tensors(example_input)] if several else [example_input]
    for x in found:
        if not isinstance(x, Tensor) or (
            x.dtype not in ROUNDING and (not several or x.is_floating_point() or x.is_complex())
        ):
            came = f"one of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"check_group needs floating-point tensors as example_input: got {came}. Use x.float().")
    for x in (floating := [x for x in found if x.is_floating_point()]):
        if (x.dtype, x.device) != (floating[0].dtype, floating[0].device):
            raise TypeError(
                f"check_group needs tensors of one dtype and device as example_input: got {floating[0].dtype} on "
                f"{floating[0].device} and {x.dtype} on {x.device}."
            )


def _check_settings(tolerance: object, max_examples: object) -> None:
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)):
        raise TypeError(f"tolerance must be a number: got {tolerance!r}.")
    if not 0 < tolerance < inf:
        raise ValueError(f"tolerance must be positive: got {tolerance}.")
    if isinstance(max_examples, bool) or not isinstance(max_examples, int):
        raise TypeError(f"max_examples must be a whole number: got {max_examples!r}.")
    if max_examples < 1:
        raise ValueError(f"max_examples must be at least 1: got {max_examples}.")


def _case_of(group: Group, example_input: Batch | None, tolerance: float, max_examples: int) -> _Case:
    _check_types(group, example_input)
    _check_settings(tolerance, max_examples)
    given = _find_example(group) if example_input is None else example_input
    for _, x in tensors(given):
        if x.ndim == 0 or x.numel() == 0:
            raise ValueError(
                f"check_group needs a batch with at least one sample, shape (N, ...): got shape {tuple(x.shape)}."
            )
    given = map_tensors(lambda x: x.detach().clone(), given)
    layout = None if isinstance(given, Tensor) else _layout_of(group, given)
    try:
        e = group.identity
        if isinstance(e, Tensor) and (e.shape, e.dtype) == (
            group.element_shape,
            group.element_dtype,
        ):  # else a law tells
            group.act(e, map_tensors(torch.clone, given if layout is None else layout.example))
    except Exception as error:
        came = ", ".join(f"{x.dtype} of shape {tuple(x.shape)}" for _, x in tensors(given))
        raise ValueError(
            f"check_group needs an input that the group acts on: {group!r} refuses {came}. {error}"
        ) from error
    x = given if layout is None else layout.pack(layout.example)
    return _Case(
        group if layout is None else packed(group, layout),
        tuple(x.shape[1:]),
        x.dtype,
        x.device,
        tolerance,
        max_examples,
        layout,
        example_input is None,
    )


def _layout_of(group: Group, example: Batch) -> Layout:
    """How several tensors become one: whole numbers that a group acts on, such as masks, as floating-point ones."""
    entries = dict(tensors(example))
    floating = [x for x in entries.values() if x.is_floating_point()]
    dtype = floating[0].dtype if floating else torch.float64
    moved = group.groups if isinstance(group, OnKeys) else entries
    cast = {key: x.to(dtype) if key in moved else x for key, x in entries.items()}
    try:
        group.act(group.identity, rebuilt(example, cast))
    except Exception:  # they may be indices
        cast = entries
    layout = Layout(rebuilt(example, {key: x[:1] for key, x in cast.items()}))
    if not layout.shapes:
        raise TypeError(
            "check_group needs floating-point tensors as example_input: got none that the group acts on. Use x.float()."
        )
    return layout


def _find_example(group: Group) -> Tensor:
    """A batch that the group acts on."""
    sizes = (*([group.order] if isinstance(group, FiniteGroup) else []), *group.element_shape)
    smooth = [(1, _SIDE, _SIDE), (_SIDE, _SIDE), (8, 3), (_SIDE,)]
    shapes = [(2, 4, 4), (4, 4), (4,), *probe_shapes(sizes)] if group.exact else [*smooth, *probe_shapes(sizes)]
    failure: Exception | None = None
    for shape in shapes:
        x = distinct_values(shape)
        try:
            group.act(group.identity, x)
        except Exception as error:
            failure = error
        else:
            return x
    raise ValueError(
        f"check_group found no input that {group!r} acts on. Give one as example_input. The last one tried, of shape "
        f"{(1, *shapes[-1])}, gave: {failure}"
    ) from failure


def _check_law(law: str, group: Group, *, example_input: Batch | None, tolerance: float, max_examples: int) -> None:
    with torch.inference_mode(False), torch.enable_grad():
        _check(_case_of(group, example_input, tolerance, max_examples), law)


# --------------------------------------------------------------------------------------------- how it is checked


class _Broken(Exception):  # noqa: N818  # never seen outside: it carries the arguments to where the message is made
    """A law raised; ``__cause__`` says what."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.arguments = arguments


def _check(case: _Case, name: str) -> None:
    """Raises LawError with the smallest arguments that break the law."""
    law = LAWS[name]
    wanted = _wanted(case, name)
    latest: dict[str, Any] = {}

    def run(arguments: dict[str, Any]) -> None:
        latest.clear()
        latest.update(arguments)
        torch.default_generator.manual_seed(
            0
        )  # so that an action that draws random numbers fails again when the failure is replayed
        try:
            law(case.group, **{key: _copy(value) for key, value in arguments.items()})
        except Exception as error:
            if _out_of_memory(error):
                raise
            raise _Broken(arguments) from error

    with torch.random.fork_rng(list(range(torch.cuda.device_count()))):
        try:
            if wanted:
                examples = case.examples if {"x", "each"} & set(wanted) else _WITHOUT_INPUTS * case.max_examples
                _as_property(run, _arguments(case, wanted), examples)()
                for arguments in _usual(case, wanted):
                    run(arguments)
                for found in suspects(name, case.group, case.probe().to(case.dtype)):
                    run({key: found[key] if key in found else _any(case, key) for key in wanted})
            else:
                run({"probe": case.probe()} if "probe" in inspect.signature(law).parameters else {})
        except _Broken as broken:
            arguments, failure = broken.arguments, broken.__cause__
        except Flaky as error:
            arguments, failure = dict(latest), error
        else:
            return
        mistake = likely_mistake(name, case.group, {"probe": case.probe(), **arguments})
    message = _message(case, name, arguments, failure, mistake)
    batch = arguments.get("x")
    if batch is not None and case.layout is not None:
        batch = case.layout.unpack(batch)
    given = {key: value for key, value in arguments.items() if key in ("f", "g", "h", "each")}
    broken_law = LawError(message, law=name, elements=given, inputs=batch)
    raise broken_law from (None if isinstance(failure, Violation) else failure)


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _as_property(run: Any, drawn: st.SearchStrategy[dict[str, Any]], max_examples: int) -> Any:
    """A hypothesis test that is the same in every run and keeps to itself."""
    configured = settings(
        max_examples=max_examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
        verbosity=Verbosity.quiet,
    )
    return configured(given(drawn)(run))


def _wanted(case: _Case, name: str) -> list[str]:
    """What a law needs drawn, by the names of its parameters."""
    parameters = inspect.signature(LAWS[name]).parameters
    as_they_are = not case.group.element_dtype.is_floating_point  # such elements are compared without an input
    optional = {"x"} if as_they_are and "x" in parameters and parameters["x"].default is None else set()
    return [key for key in parameters if key in ("f", "g", "h", "each", "x", "tolerance") and key not in optional]


def _arguments(case: _Case, wanted: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Draws what is wanted, for batches of one sample first."""

    def of_size(n: int) -> st.SearchStrategy[dict[str, Any]]:
        drawn: dict[str, st.SearchStrategy[Any]] = dict.fromkeys(wanted, elements(case.group))
        if "each" in wanted:
            drawn["each"] = element_stacks(case.group, n).map(lambda each: each.to(case.device))
        if "x" in wanted:
            drawn["x"] = case.batches(n)
        if "tolerance" in wanted:
            drawn["tolerance"] = st.just(case.tolerance)
        return st.fixed_dictionaries(drawn)

    return st.one_of([of_size(n) for n in range(1, _MAX_SAMPLES + 1)])


def _usual(case: _Case, wanted: list[str]) -> Iterator[dict[str, Any]]:
    """Elements as the group draws them and a batch with nothing special, which hypothesis may not have come to."""
    if not {"g", "x"} <= set(wanted):
        return
    probe = case.probe() / case.probe().abs().max()
    x = torch.cat([probe, -0.5 * probe.flip(-1)]).to(case.dtype) if case.group.exact else probe.to(case.dtype)
    for seed in range(min(_USUAL, 1 + case.examples // 2)):
        each = case.group.sample(len(x), torch.Generator().manual_seed(seed)).to(case.device)
        f, g, h = case.group.sample(3, torch.Generator().manual_seed(_USUAL + seed))
        given = {"f": f, "g": g, "h": h, "each": each, "x": x, "tolerance": case.tolerance}
        yield {key: given[key] for key in wanted}


def _any(case: _Case, key: str) -> Any:
    """What a law needs besides the elements that are chosen for it."""
    if key == "tolerance":
        return case.tolerance
    return case.group.identity[None].to(case.device) if key == "each" else case.group.identity


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


# ----------------------------------------------------------------------------------------------- how it is said


class _Words(str):
    """Prints without quotes in a container."""

    __slots__ = ()
    __repr__ = str.__str__


def _message(
    case: _Case, name: str, arguments: dict[str, Any], failure: BaseException | None, mistake: str | None
) -> str:
    if case.layout is not None and isinstance(failure, Violation):
        failure = Violation(_with_keys(str(failure), case.layout))
    statement = (inspect.getdoc(LAWS[name]) or name).splitlines()[0].rstrip(".")
    statement = statement[0].lower() + statement[1:]
    shown = list(_shown(arguments, case.layout))
    given = f"With {', '.join(shown[:-1])}{' and ' if shown[1:] else ''}{shown[-1]}: " if shown else "Found: "
    if isinstance(failure, Violation):
        what = f"{failure}."
    elif isinstance(failure, Flaky):
        what = "it is broken in one call and kept in the next, so that the group is not deterministic."
    else:
        what = f"{type(failure).__name__}: {failure}" if str(failure) else f"{type(failure).__name__}."
    end = f" Likely mistake: {mistake}" if mistake else ""
    if case.chosen and (name == "form" or not isinstance(failure, Violation)):
        end += (
            f" Samples of shape {case.sample_shape} were chosen here: if the group acts on others, give example_input."
        )
    return f'{case.group!r} breaks the law "{name}", {statement}. {given}{what}{end}'


def _with_keys(message: str, layout: Layout) -> str:
    """The message with positions in what is packed told by key and position there."""
    return re.sub(
        r"at position \((\d+), (\d+)\)",
        lambda found: "at {!r}, position {}".format(*layout.unpacked_position(int(found[1]), int(found[2]))),
        message,
    )


def _shown(arguments: dict[str, Any], layout: Layout | None) -> Iterator[str]:
    """The elements and the input in words."""
    for key, value in arguments.items():
        if key in ("f", "g", "h", "each"):
            yield f"{key} = {_listed(value)}"
        elif key == "x":
            yield f"x = {_described(value if layout is None else layout.unpack(value))}"


def _listed(g: Tensor) -> str:
    if g.numel() > 4 * _PRINTED:
        return f"elements of shape {tuple(g.shape)}"
    return str(g.tolist())


def _described(x: Batch) -> str:
    """The tensor itself where it is small, the few entries that are not zero, or else its dtype and shape."""
    if not isinstance(x, Tensor):
        return str(rebuilt(x, {key: _Words(_described(tensor)) for key, tensor in tensors(x)}))
    if x.numel() <= _PRINTED:
        return " ".join(repr(x).split())
    others = x.nonzero()
    of = f"of shape {tuple(x.shape)}, {x.dtype}"
    if len(others) == 0:
        return f"zeros {of}"
    if len(others) <= 4:
        entries = (f"{float(x[tuple(index)]):g} at {tuple(index.tolist())}" for index in others)
        return f"zeros {of}, but for {', '.join(entries)}"
    return f"a batch {of} (the attribute inputs of this error)"
