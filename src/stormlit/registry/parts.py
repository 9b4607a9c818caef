"""Parts by name: a part is a class with options, and a component node is ``{name: cnn, **options}``."""

from __future__ import annotations

import copy
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from stormlit.errors import ConfigError, nearest
from stormlit.files import class_in_module
from stormlit.registry.options import Option, check_values, first_line, keyword_only, options, structured

PartClass = TypeVar("PartClass", bound=type)

_parts: dict[str, dict[str, type]] = {}
_bases: dict[str, tuple[type, str]] = {}


def register(kind: str, name: str) -> Callable[[PartClass], PartClass]:
    """Class decorator: make the class buildable as ``{kind: {name: name, ...}}``.

    Raises ``ValueError`` when the name is taken, ``ConfigError`` when an option has no type or no default.
    """

    def decorate(cls: PartClass) -> PartClass:
        registered = _parts.setdefault(kind, {})
        if name in registered and registered[name] is not cls:
            raise ValueError(f"{kind} '{name}' is registered twice: {registered[name]} and {cls}")
        keyword_only(cls)
        registered[name] = cls
        return cls

    return decorate


def require_base(kind: str, base: type, name: str) -> None:
    """Have ``module:Class`` parts of a kind derive from ``base``, which a sentence calls ``name``."""
    _bases[kind] = base, name


def check_class(kind: str, cls: type) -> None:
    """Raise ``ConfigError`` unless a class derives from what its kind requires, and declares its options."""
    if kind in _bases and not issubclass(cls, _bases[kind][0]):
        raise ConfigError(f"{cls.__name__} does not derive from {_bases[kind][1]}, as every {kind} must")
    keyword_only(cls)
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is not parameter.empty:
            raise ConfigError(f"'{name}' of {cls.__name__} is no option: options stand after a '*'")


def kinds() -> list[str]:
    """Names of the kinds of parts that have at least one registered part."""
    return sorted(_parts)


def names(kind: str) -> list[str]:
    """Names of the registered parts of one kind; raises ``ConfigError`` for an unknown kind."""
    if kind not in _parts:
        guess = nearest(kind, _parts)
        raise ConfigError(f"there is no kind of part called '{kind}'{guess}; kinds are {', '.join(kinds())}")
    return sorted(_parts[kind])


def part_class(kind: str, name: str, key: str = "") -> type:
    """The class registered under a name, or the one that ``module:Class`` names; ``key`` is named in the error."""
    known, where = names(kind), f"{key}={name}: " if key else ""
    if re.fullmatch(r"[\w.]+:\w+", name):
        try:
            cls = class_in_module(*name.split(":"))
            check_class(kind, cls)
            return cls
        except ConfigError as error:
            raise ConfigError(f"{where}{error}") from error
    if name not in known:
        # An encoder of vectors, named for images, or the other way round.
        akin = [k for k in _parts if name in _parts[k] and (k.endswith(f"_{kind}") or kind.endswith(f"_{k}"))]
        where += "".join(f"{key.replace(kind, other)}={name} exists, but " for other in akin)
        what, guess = kind.replace("_", " "), nearest(name, known)
        raise ConfigError(f"{where}no {what} is called '{name}'{guess}; choose one of {', '.join(known)}")
    return _parts[kind][name]


def schema(kind: str, name: str) -> dict[str, Any]:
    """The options of a part with their defaults, in the order of its constructor."""
    return {option.name: copy.deepcopy(option.default) for option in options(part_class(kind, name)).values()}


def allowed_values(option: Option) -> str:
    """What an option may be, in words."""
    words = names(option.part) if option.part else (True, False) if option.type is bool else option.choices
    kinds = {int: "whole number", float: "number", str: "text", list: "list"}
    kind = "path" if option.path else kinds.get(typing.get_origin(option.types[0]) or option.types[0], "")
    named = ", ".join(str(word).lower() if word in (True, False) else word for word in words)
    return " or ".join(filter(None, (named, option.range))) or kind or "any value"


def fill(kind: str, node: str | Mapping[str, Any], key: str = "") -> dict[str, Any]:
    """Validate a component node and return it with every option present: ``{name: ..., **options}``.

    node: a part's name, or a mapping with ``name`` and options.  key: configuration key for error messages.
    Raises ``ConfigError`` for an unknown part or option and for a value of the wrong type or out of range.
    """
    # An environment's process imports this module too, and needs no OmegaConf.
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

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
    declared = options(cls)
    for option in given:
        if option not in declared:
            raise ConfigError(
                f"{where}.{option} is not an option of {kind.replace('_', ' ')} '{name}'{nearest(option, declared)}; "
                f"it has {', '.join(declared) or 'no options'}"
            )
    try:
        filled = OmegaConf.to_container(OmegaConf.merge(structured(cls), given))
    except OmegaConfBaseException as error:
        option = getattr(error, "full_key", None) or ""
        raise ConfigError(f"{where}.{option}: {first_line(error)}") from error
    check_values(declared, typing.cast(dict[str, Any], filled), f"{where}.")
    return {"name": name, **typing.cast(dict[str, Any], filled)}


def build(kind: str, node: str | Mapping[str, Any], *surroundings: Any, key: str = "") -> Any:
    """Construct the part a node describes; surroundings: the positional constructor arguments of its kind."""
    filled = fill(kind, node, key)
    cls = part_class(kind, name := filled.pop("name"), key)
    try:
        inspect.signature(cls).bind(*surroundings, **filled)
    except TypeError as error:
        raise ConfigError(f"{key or kind}={name} cannot be built with what {cls.__name__} is given: {error}") from error
    return cls(*surroundings, **filled)
