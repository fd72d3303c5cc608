"""`_terra_native.pyi` has every public name of the native module, and no other."""

import ast
import pathlib
import re

import pytest

from terra_tf import _native

ROOT = pathlib.Path(__file__).parents[2]
STUB = ROOT / "terra_tf" / "_terra_native.pyi"
OF_ENUMS = {"name", "value", "__members__"}  # pybind11 gives them to every enum


def is_public(name):
    return not name.startswith("_")


def names_in(body):
    """Return the public names that a module's or a class's statements declare."""
    names = {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    names |= {node.target.id for node in body if isinstance(node, ast.AnnAssign)}
    return set(filter(is_public, names))


@pytest.fixture(scope="module")
def stub():
    return ast.parse(STUB.read_text())


@pytest.fixture(scope="module")
def module():
    return _native.load().module


def public_names(thing):
    return set(filter(is_public, vars(thing)))


def test_stub_has_every_name_of_the_module(stub, module):
    missing = public_names(module) - names_in(stub.body)
    assert not missing, f"terra_tf/_terra_native.pyi lacks {sorted(missing)}"


def test_stub_has_no_name_that_the_module_lacks(stub, module):
    superfluous = names_in(stub.body) - public_names(module)
    assert not superfluous, f"terra_tf/_terra_native.pyi has {sorted(superfluous)}"


CLASSES = ["CallCounts", "HeldHandle", "Mode", "Monitor", "Plan", "Session", "StateGuard"]


@pytest.mark.parametrize("name", CLASSES)
def test_stub_of_a_class_has_its_members(name, stub, module):
    (declared,) = (n for n in stub.body if isinstance(n, ast.ClassDef) and n.name == name)
    assert names_in(declared.body) - OF_ENUMS == public_names(getattr(module, name)) - OF_ENUMS


def test_every_class_of_the_module_is_compared(module):
    classes = {name for name in public_names(module) if isinstance(getattr(module, name), type)}
    assert classes == set(CLASSES)


def parameters(signature):
    """Return how many positional and which keyword parameters pybind11 says a function takes."""
    inside = re.sub(r"\[[^][]*\]", "", signature)
    while (shorter := re.sub(r"\[[^][]*\]", "", inside)) != inside:
        inside = shorter
    listed = inside.partition("(")[2].rpartition(")")[0].split(",")
    names = [text.partition(":")[0].strip() for text in listed]
    return [name for name in names if name not in ("", "*", "/", "*args")]


def functions_of(stub):
    for node in stub.body:
        for function in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(function, ast.FunctionDef) and not function.decorator_list:
                yield (node.name if isinstance(node, ast.ClassDef) else None), function


def test_functions_take_as_many_arguments_as_the_stub_says(stub, module):
    wrong, num_compared = [], 0
    for owner, function in functions_of(stub):
        if owner == "Mode" or function.name == "hook_function":
            continue
        native = getattr(module if owner is None else getattr(module, owner), function.name)
        expected = parameters(native.__doc__.splitlines()[0].partition("->")[0])
        arguments = function.args
        names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        assert (arguments.vararg is not None) == ("*args" in native.__doc__.splitlines()[0])
        is_positional = all(name == "self" or re.fullmatch(r"arg\d+", name) for name in expected)
        num_compared += 1
        if len(names) != len(expected) or not (is_positional or names == expected):
            wrong.append(f"{function.name}: the stub has {names}, the module {expected}")
    assert num_compared > 50
    assert not wrong, "\n".join(wrong)


def test_types_are_packaged():
    assert (ROOT / "terra_tf" / "py.typed").exists()
    assert '"*.pyi", "py.typed"' in (ROOT / "setup.py").read_text()
