"""Every public name is documented as numpydoc wants it: each parameter, each return value, in order."""

from __future__ import annotations

import inspect
import re
from types import FunctionType

import pytest
from numpydoc.docscrape import ClassDoc, FunctionDoc
from numpydoc.validate import Validator, validate

import tcm_sync
import tcm_sync.events
import tcm_sync.local
import tcm_sync.models
from tcm_sync import Deployment, InferResult, InferStream, Model, TcmError

#: What the style of this project leaves out.
LEFT_OUT = {
    "ES01",  # an extended summary, where the first sentence says all
    "EX01",  # examples: they are in docs/
    "SA01",  # "See Also": names in the text are links
}
#: What a client makes, and its users never: their constructors are documented nowhere.
MADE_BY_CLIENTS = {Deployment, InferResult, InferStream, Model}
DESCRIPTORS = (FunctionType, property, classmethod, staticmethod)


def public_names() -> list[str]:
    names = []
    for module in (tcm_sync, tcm_sync.events, tcm_sync.local, tcm_sync.models):
        for name in module.__all__:
            if inspect.isclass(kind := getattr(module, name)):
                names += [f"{module.__name__}.{name}"]
                names += [f"{module.__name__}.{name}.{method}" for method in methods(kind)]
            elif inspect.isroutine(kind):
                names.append(f"{module.__name__}.{name}")
    return names


def methods(kind: type) -> list[str]:
    """Return the public methods and properties that a class has from this package."""
    ours = [base for base in kind.__mro__ if base.__module__.startswith("tcm_sync")]
    found = {name: each for base in reversed(ours) for name, each in vars(base).items()}
    return sorted(n for n, each in found.items() if not n.startswith("_") and isinstance(each, DESCRIPTORS))


def documents_its_constructor_elsewhere(kind: object) -> bool:
    """Whether it is an error, whose constructor is `TcmError`'s, or has its fields under Attributes."""
    if not inspect.isclass(kind):
        return False
    if kind in MADE_BY_CLIENTS:
        return True
    if issubclass(kind, TcmError) and kind is not TcmError:
        return kind.__init__ is TcmError.__init__
    bases = [base for base in kind.__mro__ if base.__module__.startswith("tcm_sync")]
    documented = [each for base in bases for each in ClassDoc(base)["Attributes"]]
    attributes = {name for each in documented for name in each.name.split(", ")}
    return attributes >= set(inspect.signature(kind).parameters)


def find(name: str) -> object:
    """Return what a public name stands for."""
    found: object = tcm_sync
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    return found


def refers(text: str, documented: object) -> bool:
    """Whether a mistake is a type that is missing, of a parameter that is as another method takes it."""
    found = re.fullmatch(r'Parameter "(.+)" has no type', text)
    if found is None:
        return False
    doc = FunctionDoc(documented)
    (about,) = (each.desc for each in doc["Parameters"] if found[1] in each.name.split(", "))
    return re.match(r"As `[\w.]+` takes (them|it)\.", " ".join(about)) is not None


@pytest.mark.parametrize("name", public_names())
def test_the_documentation_of_a_public_name_is_whole(name, monkeypatch):
    # It looks for the line in the module that a name is exported from, where Python 3.14 finds none.
    monkeypatch.setattr(Validator, "source_file_def_line", None)
    documented = find(name)
    left_out = LEFT_OUT | ({"PR01"} if documents_its_constructor_elsewhere(documented) else set())
    mistakes = [
        f"{code}: {text}"
        for code, text in validate(name)["errors"]
        if code not in left_out and not (code == "PR04" and refers(text, documented))
    ]
    assert not mistakes, "\n".join([name, *mistakes])
