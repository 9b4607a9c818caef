"""Parts by name: what is declared, checked and built, and what a mistake is answered with."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stormlit import registry
from stormlit.cli.commands import list_components
from stormlit.errors import ConfigError
from stormlit.registry import Option, allowed_values, build, fill, kinds, names, part_class, register, schema


class Lamp:
    """A part for these tests."""

    def __init__(
        self,
        socket: str,
        height: int = 1,
        *,
        watts: int = 40,
        dim: float = 0.5,
        on: bool = True,
        tags: list[str] = [],  # noqa: B006  what a careless author writes must still not be shared
    ) -> None:
        self.socket, self.height, self.watts, self.dim, self.on, self.tags = socket, height, watts, dim, on, tags


class Candle:
    """A part without options."""

    def __init__(self, socket: str) -> None:
        self.socket = socket


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_parts", {})
    assert register("light_source", "lamp")(Lamp) is Lamp
    register("light_source", "candle")(Candle)
    register("door", "oak")(Candle)


def test_what_is_registered_can_be_listed() -> None:
    assert kinds() == ["door", "light_source"]
    assert names("light_source") == ["candle", "lamp"]
    assert part_class("light_source", "lamp") is Lamp


def test_the_schema_is_the_keyword_only_parameters_in_order() -> None:
    assert list(schema("light_source", "lamp").items()) == [("watts", 40), ("dim", 0.5), ("on", True), ("tags", [])]
    assert schema("light_source", "candle") == {}


def test_filling_adds_defaults_and_converts_values() -> None:
    assert fill("light_source", "lamp") == {"name": "lamp", "watts": 40, "dim": 0.5, "on": True, "tags": []}
    filled = fill("light_source", {"name": "lamp", "watts": "60", "dim": 1, "on": "false", "tags": ["a"]})
    assert filled == {"name": "lamp", "watts": 60, "dim": 1.0, "on": False, "tags": ["a"]}
    assert (type(filled["watts"]), type(filled["dim"]), type(filled["on"])) == (int, float, bool)


def test_filling_leaves_the_node_and_the_defaults_alone() -> None:
    node = {"name": "lamp", "watts": 60}
    fill("light_source", node)["tags"].append("spoilt")
    assert node == {"name": "lamp", "watts": 60}
    assert fill("light_source", "lamp")["tags"] == []


def test_building_passes_surroundings_and_options() -> None:
    lamp = build("light_source", {"name": "lamp", "dim": 1}, "E27", 2)
    assert (lamp.socket, lamp.height, lamp.watts, lamp.dim) == ("E27", 2, 40, 1.0)
    assert build("light_source", "candle", "none").socket == "none"


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ("lmap", r"^room.light=lmap: no light source is called 'lmap' \(did you mean 'lamp'\?\); .*candle, lamp$"),
        ({"watts": 3}, r"^room.light needs a name; choose one of candle, lamp$"),
        (
            {"name": "lamp", "wats": 3},
            r"^room.light.wats is not an option of light source 'lamp' \(did you mean 'watts'\?\); "
            r"it has watts, dim, on, tags$",
        ),
        ({"name": "candle", "watts": 3}, r"light source 'candle'; it has no options$"),
        ({"name": "lamp", "watts": "many"}, r"^room.light.watts: .*'many'.*Integer"),
        ({"name": "lamp", "on": "perhaps"}, r"^room.light.on: .*perhaps"),
        (None, r"^room.light"),
    ],
)
def test_mistakes_are_one_sentence_that_names_the_key(node: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        fill("light_source", node, "room.light")
    assert "\n" not in str(raised.value)


def test_an_unknown_kind_is_named_with_its_neighbour() -> None:
    with pytest.raises(ConfigError, match=r"no kind of part called 'dor' \(did you mean 'door'\?\).*light_source$"):
        names("dor")


class Shutter:
    """A part from outside, all of whose options say what they are."""

    def __init__(
        self,
        width: int,
        *,
        slats: Annotated[int, Option("slats of the shutter", low=2, high=90)] = 12,
        lowest: Annotated[float, Option("its lower edge", below="highest")] = 0.0,
        highest: float = 1.0,
        finish: Annotated[Literal["raw", "oiled"], Option("of the wood")] = "oiled",
        hook: str | None = None,
    ) -> None:
        self.slats = slats


def test_an_option_is_declared_in_one_place() -> None:
    """Type, default, range and help are all read from the constructor, of a class nobody else has heard of."""
    register("shutter", "wooden")(Shutter)
    declared = registry.options(Shutter)
    assert [(o.name, o.type, o.default, o.help, allowed_values(o)) for o in declared.values()] == [
        ("slats", int, 12, "slats of the shutter", "2 to 90"),
        ("lowest", float, 0.0, "its lower edge", "number"),
        ("highest", float, 1.0, "", "number"),
        ("finish", Literal["raw", "oiled"], "oiled", "of the wood", "raw, oiled"),
        ("hook", str | None, None, "", "text"),
    ]
    filled = {"name": "wooden", "slats": 12, "lowest": 0.0, "highest": 1.0, "finish": "oiled", "hook": None}
    assert fill("shutter", "wooden") == filled
    assert list_components("shutter").splitlines()[2] == "      slats = 12  slats of the shutter (2 to 90)"
    assert build("shutter", {"name": "wooden", "slats": 2}, 5).slats == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"slats": 1}, "slats=1 is out of range: expected 2 to 90"),
        ({"slats": 91}, "slats=91 is out of range: expected 2 to 90"),
        ({"lowest": 1.0}, "lowest=1.0 must be smaller than hall.shutter.highest=1.0"),
        ({"lowest": float("nan")}, "lowest=nan is not a finite number"),
        ({"highest": float("inf")}, "highest=inf is not a finite number"),
        ({"finish": "painted"}, "finish: Invalid value 'painted', expected one of ['raw', 'oiled']"),
    ],
)
def test_building_checks_what_the_constructor_declares(wrong: dict[str, Any], message: str) -> None:
    register("shutter", "wooden")(Shutter)
    with pytest.raises(ConfigError, match=f"^{re.escape(f'hall.shutter.{message}')}$"):
        build("shutter", {"name": "wooden", **wrong}, 5, key="hall.shutter")


def test_a_class_that_is_no_part_is_a_section_of_the_configuration() -> None:
    """Groups nest, with the defaults that the constructor above gives them, and are built from what comes out."""

    class Window:
        def __init__(
            self,
            *,
            panes: Annotated[int, Option("glass panes", low=1)] = 2,
            shutter: Annotated[Mapping[str, Any], Option(group=Shutter)] = {"slats": 5},
        ) -> None:
            self.shutter = Shutter(9, **shutter)

    section = registry.settings(Window)
    tree = dataclasses.asdict(section())
    shutter = {"slats": 5, "lowest": 0.0, "highest": 1.0, "finish": "oiled", "hook": None}
    assert tree == {"panes": 2, "shutter": shutter}
    assert Window(shutter=tree["shutter"]).shutter.slats == 5
    keys = dict(registry.options_below(section))
    assert list(keys) == ["panes", *(f"shutter.{name}" for name in shutter)]
    assert keys["shutter.slats"].help == "slats of the shutter"
    with pytest.raises(ConfigError, match=r"^shutter\.slats=0 is out of range"):
        registry.check_values(keys, dict(registry.leaves({"panes": 1, "shutter": {**shutter, "slats": 0}})))
    with pytest.raises(OmegaConfBaseException):
        OmegaConf.merge(OmegaConf.structured(section), {"shutter": {"finish": "painted"}})


def test_registering_twice_is_refused_for_another_class_only() -> None:
    register("light_source", "lamp")(Lamp)
    with pytest.raises(ValueError, match="light_source 'lamp' is registered twice"):
        register("light_source", "lamp")(Candle)
    register("door", "lamp")(Candle)
    assert part_class("light_source", "lamp") is Lamp and part_class("door", "lamp") is Candle


def test_an_option_without_a_type_or_a_default_is_refused() -> None:
    class Torch:
        def __init__(self, *, batteries: int) -> None:
            self.batteries = batteries

    class Fire:
        def __init__(self, *, logs=3) -> None:  # type: ignore[no-untyped-def]
            self.logs = logs

    for cls, sentence in (
        (Torch, "option 'batteries' of Torch needs a default, as in 'batteries: int = 1'"),
        (Fire, "option 'logs' of Fire needs a type, as in 'logs: int = 1'"),
    ):
        with pytest.raises(ConfigError, match=f"^{re.escape(sentence)}$"):
            register("light_source", "another")(cls)
    assert "another" not in names("light_source")
