"""Parts by name: a component node is ``{name: cnn, **options}``.

A part is a class whose constructor takes its surroundings (shapes, widths) as positional parameters and its options as
keyword-only ones. The keyword-only parameters are the schema: their names, annotations and defaults are the single
place where an option is declared. A new part is one class and one decorator.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import inspect
import os
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stormlit.errors import ConfigError, OptionError, nearest

PartClass = TypeVar("PartClass", bound=type)

_parts: dict[str, dict[str, type]] = {}


def register(kind: str, name: str) -> Callable[[PartClass], PartClass]:
    """Class decorator: make the class buildable as ``{kind: {name: name, ...}}``.

    Raises ``ValueError`` when the name is taken or an option has no default.
    """

    def decorate(cls: PartClass) -> PartClass:
        registered = _parts.setdefault(kind, {})
        if name in registered and registered[name] is not cls:
            raise ValueError(f"{kind} '{name}' is registered twice: {registered[name]} and {cls}")
        for option in _options(cls):
            if option.default is inspect.Parameter.empty:
                raise ValueError(f"option '{option.name}' of {kind} '{name}' needs a default")
        registered[name] = cls
        return cls

    return decorate


def kinds() -> list[str]:
    """Names of the kinds of parts that have at least one registered part."""
    return sorted(_parts)


def names(kind: str) -> list[str]:
    """Names of the registered parts of one kind; raises ``ConfigError`` for an unknown kind."""
    if kind not in _parts:
        raise ConfigError(
            f"there is no kind of part called '{kind}'{nearest(kind, _parts)}; kinds are {', '.join(kinds())}"
        )
    return sorted(_parts[kind])


def part_class(kind: str, name: str, key: str = "") -> type:
    """The class registered under a name, or the one that ``module:Class`` names; ``key`` is named in the error."""
    known = names(kind)
    where = f"{key}={name}: " if key else ""
    if ":" in name:
        return _imported(name, where)
    if name not in known:
        raise ConfigError(
            f"{where}no {kind.replace('_', ' ')} is called '{name}'{nearest(name, known)}; "
            f"choose one of {', '.join(known)}"
        )
    return _parts[kind][name]


def _imported(name: str, where: str) -> type:
    """A class of a module that can be imported from the Python path or from the working directory."""
    module_name, _, class_name = name.partition(":")
    if os.getcwd() not in sys.path:  # the console script's path does not have it
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        if missing or not module_name.strip("."):
            reason = f"there is no module '{module_name}' in {os.getcwd()} or on the Python path"
        raise ConfigError(f"{where}{'' if missing else f'{module_name} cannot be imported: '}{reason}") from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        own = [each for each, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        classes = [each for each in own if isinstance(getattr(module, each), type)]
        raise ConfigError(
            f"{where}{module_name} has no class '{class_name}'{nearest(class_name, classes)}; "
            f"it has {', '.join(classes) or 'none'}"
        )
    return found


def schema(kind: str, name: str) -> dict[str, Any]:
    """The options of a part with their defaults, in the order of its constructor."""
    return {option.name: option.default for option in _options(part_class(kind, name))}


def fill(kind: str, node: str | Mapping[str, Any], key: str = "") -> dict[str, Any]:
    """Validate a component node and return it with every option present: ``{name: ..., **options}``.

    node: a part's name, or a mapping with ``name`` and options.  key: configuration key for error messages.
    Raises ``ConfigError`` for an unknown part or option and for a value of the wrong type.
    """
    where = key or kind
    if not isinstance(node, (str, Mapping)):
        raise ConfigError(
            f"{where}={node} is neither a name nor a mapping with one; choose from {', '.join(names(kind))}"
        )
    given = {"name": node} if isinstance(node, str) else dict(node)
    if "name" not in given:
        raise ConfigError(f"{where} needs a name; choose one of {', '.join(names(kind))}")
    name = given.pop("name")
    cls = part_class(kind, str(name), key)
    allowed = schema(kind, name)
    for option in given:
        if option not in allowed:
            raise ConfigError(
                f"{where}.{option} is not an option of {kind.replace('_', ' ')} '{name}'{nearest(option, allowed)}; "
                f"it has {', '.join(allowed) or 'no options'}"
            )
    try:
        typed = OmegaConf.merge(OmegaConf.structured(_options_dataclass(cls)), given)
        return {"name": name, **typing.cast(dict[str, Any], OmegaConf.to_container(typed))}
    except OmegaConfBaseException as error:
        option = getattr(error, "full_key", None) or ""
        raise ConfigError(f"{where}.{option}: {str(error).splitlines()[0]}") from error


def build(kind: str, node: str | Mapping[str, Any], *surroundings: Any, key: str = "") -> Any:
    """Construct the part a node describes.

    surroundings: the positional constructor arguments of its kind.  key: configuration key for error messages.
    """
    options = fill(kind, node, key)
    name = options.pop("name")
    cls = part_class(kind, name, key)
    try:
        inspect.signature(cls).bind(*surroundings, **options)
    except TypeError as error:
        raise ConfigError(f"{key or kind}={name} cannot be built with what {cls.__name__} is given: {error}") from error
    try:
        return cls(*surroundings, **options)
    except OptionError as error:
        raise ConfigError(f"{key or kind}.{error}") from error


def _options(cls: type) -> list[inspect.Parameter]:
    parameters = inspect.signature(cls).parameters.values()
    return [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]


def _options_dataclass(cls: type) -> type:
    """A dataclass with the options as fields, so that OmegaConf checks and converts the values."""
    hints = typing.get_type_hints(vars(cls)["__init__"])
    fields = [
        (
            option.name,
            hints[option.name],
            dataclasses.field(default_factory=functools.partial(copy.copy, option.default)),
        )
        for option in _options(cls)
    ]
    return dataclasses.make_dataclass(f"{cls.__name__}Options", fields)
