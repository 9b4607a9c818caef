"""Options, each declared in one place, and parts by name.

Whatever takes options says so in its constructor, by keyword-only parameters whose annotation says what they are:

    hidden_dim: Annotated[int, Option("width of the heads", low=1)] = 512

Name, type, default, range and the line of help are read from there by the configuration, its checks, the listings of
the command line and the table in docs/configuration.md. Positional parameters are a class's surroundings (shapes,
widths, a device), which no configuration sets.

A part is a class with options that is chosen by its name: in the configuration it is ``{name: cnn, **options}``.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import math
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from stormlit.errors import ConfigError, nearest
from stormlit.files import class_in_module

PartClass = TypeVar("PartClass", bound=type)

_parts: dict[str, dict[str, type]] = {}
_bases: dict[str, tuple[type, str]] = {}

DEFAULTS: Mapping[str, Any] = MappingProxyType({})
"""A group of options all of which have their defaults."""

AS_GOOD_AS_NONE = 10**9  # an upper end that is not worth telling

Role = Literal[
    "experiment",  # another value is another experiment
    "view",  # as well, but how an environment is shown does not change what a score in it is worth
    "seed",  # which of equal runs it is
    "start",  # what a new run begins with
    "place",  # where a run is, and who watches it
    "threads",  # what "auto" becomes is kept with the run
    "speed",  # what it computes with
    "operation",  # how failures are met, and how often something is shown
    "saving",  # what is kept of it
    "evaluation",  # how it is measured
    "budget",  # how long it is; may grow
]
"""What a change of an option means."""


@dataclasses.dataclass(frozen=True)
class Option:
    """What an option is, beside what Python's own syntax says of it.

    help: one line.  low, high: smallest and largest value.  below: the option beside it that must be larger.
    path: whether it names files ("~" is the home directory).  any_keys: whether it is a mapping of undeclared names.
    part: the kind of part chosen here.  group: the class whose options these are; the value is a mapping of them, or
    the settings dataclass itself.  role: what a change of it means; that of a group holds for its options.
    name, type, default: filled in by ``options``.
    """

    help: str = ""
    low: float = -math.inf
    high: float = math.inf
    below: str = ""
    path: bool = False
    any_keys: bool = False
    part: str = ""
    group: type | None = None
    role: Role = "experiment"
    name: str = ""
    type: Any = Any
    default: Any = None

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values of a ``Literal``, be it one of several types; empty where there is none."""
        literals = [each for each in (self.type, *typing.get_args(self.type)) if typing.get_origin(each) is Literal]
        return tuple(word for literal in literals for word in typing.get_args(literal))

    @property
    def types(self) -> tuple[Any, ...]:
        """The types it may have: more than one for ``int | None``."""
        return typing.get_args(self.type) if type(None) in typing.get_args(self.type) else (self.type,)

    @property
    def range(self) -> str:
        """Its range in words, without an upper end that is as good as none; empty where there is none."""
        if self.low == -math.inf:
            return ""
        return f"at least {self.low:g}" if self.high >= AS_GOOD_AS_NONE else f"{self.low:g} to {self.high:g}"


@functools.cache
def options(cls: type) -> Mapping[str, Option]:
    """The options of a class by name, in order: its constructor's keyword-only parameters, or a dataclass's fields; of
    a class with too many of them for that, the fields of the dataclass that it calls ``Options``.

    Every class is read once. Raises ``ConfigError`` for one without a type or without a default.
    """
    cls = getattr(cls, "Options", cls)
    if dataclasses.is_dataclass(cls):
        defaults = {
            f.name: f.default_factory() if callable(f.default_factory) else f.default for f in dataclasses.fields(cls)
        }
    else:
        defaults = {p.name: p.default for p in keyword_only(cls)}
    try:
        constructor = cls if dataclasses.is_dataclass(cls) else cls.__init__  # type: ignore[misc]
        hints = typing.get_type_hints(constructor, include_extras=True)
    except NameError as error:
        raise ConfigError(f"the annotations of {cls.__name__} cannot be read: {error}") from error
    declared: dict[str, Option] = {}
    for name, default in defaults.items():
        hint = hints[name]
        note = next((note for note in getattr(hint, "__metadata__", ()) if isinstance(note, Option)), Option())
        declared[name] = dataclasses.replace(
            note,
            name=name,
            type=hint.__origin__ if hasattr(hint, "__metadata__") else hint,
            default={"name": default} if isinstance(default, str) and note.part else default,
            group=note.group or (type(default) if dataclasses.is_dataclass(default) else None),
        )
    return MappingProxyType(declared)


def options_below(cls: type, prefix: str = "") -> Iterator[tuple[str, Option]]:
    """Every option of a class and of the groups in it, with its dotted key."""
    for name, option in options(cls).items():
        if option.group is not None:
            for key, below in options_below(option.group, f"{prefix}{name}."):
                yield key, below if below.role != "experiment" else dataclasses.replace(below, role=option.role)
        else:
            yield f"{prefix}{name}", option


@functools.cache
def settings(cls: type, base: type | None = None) -> type:
    """A dataclass whose fields are a class's options, after those of ``base``; OmegaConf checks their types."""
    if dataclasses.is_dataclass(cls):
        return cls
    fields = []
    for name, option in options(cls).items():
        hint, make = option.type, functools.partial(copy.deepcopy, option.default)
        if option.part and typing.get_origin(hint) is not list:
            hint = Any
        elif option.group is not None:
            hint = settings(option.group)
            make = functools.partial(hint, **option.default)
        fields.append((name, Annotated[hint, option], dataclasses.field(default_factory=make)))
    return dataclasses.make_dataclass(f"{cls.__name__}Options", fields, bases=(base,) if base else ())


@functools.cache
def structured(cls: type) -> Any:
    """A class's options with their defaults, as a node of OmegaConf's to merge from. Made once, as that takes long."""
    # An environment's process imports this module too, and needs no OmegaConf.
    from omegaconf import OmegaConf

    return OmegaConf.structured(settings(cls))


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested mappings with its dotted key; an empty mapping is a value."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def check_values(declared: Mapping[str, Option], values: Mapping[str, Any], prefix: str = "") -> None:
    """Raise ``ConfigError`` for the first word that is no choice, the first number out of range or not finite, or the
    first pair in the wrong order.
    """
    for key, option in declared.items():
        value = values.get(key)
        if typing.get_origin(option.type) is Literal and value not in option.choices:
            choices = ", ".join(map(str, option.choices))
            raise ConfigError(f"{prefix}{key}={value} does not exist: expected one of {choices}")
        if isinstance(value, (int, float)) and option.range and not option.low <= value <= option.high:
            too_large = value > option.high >= AS_GOOD_AS_NONE
            expected = f"at most {option.high}" if too_large else option.range
            raise ConfigError(f"{prefix}{key}={value} is out of range: expected {expected}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{prefix}{key}={value} is not a finite number")
    for key, option in declared.items():
        value = values.get(key)
        larger = f"{key.removesuffix(option.name)}{option.below}"
        if option.below and value >= values[larger]:
            raise ConfigError(f"{prefix}{key}={value} must be smaller than {prefix}{larger}={values[larger]}")


def first_line(error: Exception) -> str:
    """What OmegaConf says of a value, without its table of details."""
    begins = "'${' begins a reference such as ${seed}, and " if type(error).__name__ == "GrammarParseError" else ""
    return begins + str(error).splitlines()[0]


def keyword_only(cls: type) -> list[inspect.Parameter]:
    """The parameters that are options; raises ``ConfigError`` for one without a type or without a default."""
    found = [p for p in inspect.signature(cls).parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    for parameter in found:
        for missing, what in ((parameter.annotation, "a type"), (parameter.default, "a default")):
            if missing is inspect.Parameter.empty:
                raise ConfigError(
                    f"option '{parameter.name}' of {cls.__name__} needs {what}, as in '{parameter.name}: int = 1'"
                )
    return found


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
