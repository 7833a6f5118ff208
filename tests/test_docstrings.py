"""Does each docstring name the arguments that there are, and no others?"""

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import invreg
from invreg import functional, testing
from invreg.metric import InvarianceError

PACKAGE = Path(invreg.__file__).parent

EXAMPLES_ELSEWHERE = {
    "Group",  # abstract; the example of a custom group is FiniteGroup's
    "PositionGroup",  # abstract too
    # made by functions that have the example
    "Comparison",
    "DriftReport",
    "InvarianceReport",
    "LayersReport",
    "SliceReport",
}


def public_objects() -> dict[str, Any]:
    """The classes and functions that users import, by name."""
    found = {name: getattr(invreg, name) for name in invreg.__all__}
    found |= {f"functional.{name}": getattr(functional, name) for name in functional.__all__}
    found["metric.InvarianceError"] = InvarianceError
    found |= {f"testing.{name}": getattr(testing, name) for name in testing.__all__}
    return {name: value for name, value in found.items() if inspect.isclass(value) or inspect.isfunction(value)}


OBJECTS = public_objects()


def public_methods() -> Iterator[tuple[str, type, Callable[..., Any]]]:
    """The methods that the public classes define or inherit within the package, each once, with their class."""
    seen = set()
    for value in OBJECTS.values():
        for base in value.__mro__ if inspect.isclass(value) else ():
            if not base.__module__.startswith("invreg") or base in seen:
                continue
            seen.add(base)
            for name, member in vars(base).items():
                function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
                if inspect.isfunction(function) and (name == "__call__" or not name.startswith("_")):
                    yield f"{base.__name__}.{name}", base, function


METHODS = {name: (base, function) for name, base, function in public_methods()}


def parameters_of(value: Callable[..., Any]) -> list[str]:
    """The names in the signature, without ``self`` and ``cls``."""
    names = list(inspect.signature(value).parameters)
    return names[1:] if names and names[0] in ("self", "cls") else names


def arguments_in(docstring: str) -> list[str]:
    """The names that the section Args lists; none where there is no such section."""
    section = re.search(r"^Args:\n((?:[ ]{4}.*\n?|\n)+)", inspect.cleandoc(docstring), re.MULTILINE)
    return re.findall(r"^[ ]{4}\*{0,2}(\w+):", section.group(1), re.MULTILINE) if section else []


def refers_elsewhere(docstring: str) -> bool:
    """Whether the docstring says where the arguments are explained."""
    return re.search(r"\b[Ss]ee ``[\w.]+``", docstring) is not None


def overridden(base: type, name: str) -> list[Callable[..., Any]]:
    """The methods of the package that this one replaces."""
    functions = [vars(ancestor).get(name) for ancestor in base.__mro__[1:] if ancestor.__module__.startswith("invreg")]
    return [function for function in functions if inspect.isfunction(function)]


def maker_of(docstring: str) -> str | None:
    """What makes a class that users do not make themselves, and documents it."""
    found = re.search(r"Made by ``([\w.]+)``, which documents it", docstring)
    return found.group(1) if found else None


def test_there_is_something_to_check():
    assert {"L2InvarianceLoss", "measure_invariance", "functional.logit_error", "CyclicRotation"} <= OBJECTS.keys()
    assert {"testing.check_group", "testing.elements", "testing.LawError"} <= OBJECTS.keys()
    assert {
        "Transformations.act",
        "IndexedTransformations.orbit",
        "SaliencyMap.__call__",
        "InvarianceReport.from_dict",
    } <= METHODS.keys()
    assert {"InvarianceLoss.forward", "FiniteGroup.from_actions"} <= METHODS.keys()


def test_every_public_name_is_there_and_sorted():
    for module in (invreg, functional, testing):
        assert all(hasattr(module, name) for name in module.__all__)
        assert len(set(module.__all__)) == len(module.__all__)
    assert sorted(invreg.__all__) == invreg.__all__


@pytest.mark.parametrize("name", OBJECTS)
def test_every_argument_is_explained_and_no_other(name):
    value = OBJECTS[name]
    assert value.__doc__, "no docstring"
    if maker := maker_of(value.__doc__):
        assert arguments_in(OBJECTS[maker].__doc__)
        return
    has_constructor = not inspect.isclass(value) or value.__init__ is not object.__init__
    expected = parameters_of(value) if has_constructor else []
    assert arguments_in(value.__doc__) == expected


@pytest.mark.parametrize("name", OBJECTS)
def test_what_users_call_has_an_example(name):
    docstring = inspect.cleandoc(OBJECTS[name].__doc__)
    has_example = re.search(r"^Example:\n+    >>> ", docstring, re.MULTILINE) is not None
    assert has_example or name in EXAMPLES_ELSEWHERE or maker_of(docstring) in OBJECTS


@pytest.mark.parametrize("name", METHODS)
def test_every_argument_of_a_method_is_explained_or_said_to_be_elsewhere(name):
    base, function = METHODS[name]
    docstring = function.__doc__
    assert docstring, "no docstring"
    listed, expected = arguments_in(docstring), parameters_of(function)
    if listed or not expected:
        assert listed == expected
        return
    documented = [original for original in overridden(base, function.__name__) if arguments_in(original.__doc__)]
    if refers_elsewhere(docstring):
        return
    assert documented, f"explain {expected} or say where that is done"
    assert arguments_in(documented[0].__doc__) == expected


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_refers_to_is_there(name):
    _, function = METHODS[name]
    names = {value.__name__: value for value in OBJECTS.values()} | {
        base.__name__: base for base, _ in METHODS.values()
    }
    for reference in re.findall(r"\b[Ss]ee ``([\w.]+)``", function.__doc__):
        owner, _, member = reference.partition(".")
        assert owner in names, reference
        assert not member or hasattr(names[owner], member), reference


def test_type_aliases_are_explained():
    tree = ast.parse((PACKAGE / "functional.py").read_text(encoding="utf-8"))
    explained = {
        statement.targets[0].id
        for statement, after in zip(tree.body[:-1], tree.body[1:], strict=True)
        if isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str)
    }
    aliases = {name for name in functional.__all__ if f"functional.{name}" not in OBJECTS}
    assert aliases == {"ErrorFunction", "Model"}
    assert aliases <= explained


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_file_says_what_it_answers(path):
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring
    assert docstring.splitlines()[0].endswith(("?", "."))


# The checks themselves


def test_arguments_are_read_from_a_docstring():
    def documented(first, *, second=1):
        """Does something.

        Args:
            first: What it is,
                over two lines: with a colon.
            second: Another thing.

        Returns:
            nothing: at all.
        """

    assert arguments_in(documented.__doc__) == ["first", "second"] == parameters_of(documented)
    assert arguments_in("Does something.") == []
    assert arguments_in("Does something.\n\nReturns:\n    one: thing\n") == []


def test_a_reference_is_told_from_plain_words():
    assert refers_elsewhere("Turns back; see ``Group.inverse``.")
    assert refers_elsewhere("A mirror. See ``Group.inverse``.")
    assert not refers_elsewhere("One sees ``x``, that is all.")
    assert maker_of("A tie. Made by ``tie``, which documents it.") == "tie"
    assert maker_of("A tie, made by hand.") is None
