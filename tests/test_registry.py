"""Parts by name: what is declared, checked and built, and what a mistake is answered with."""

from __future__ import annotations

from typing import Any

import pytest

from stormlit import registry
from stormlit.errors import ConfigError
from stormlit.registry import build, fill, kinds, names, part_class, register, schema


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
        ({"name": "lamp", "watts": 1.5}, r"^room.light.watts: .*1.5.*Integer"),
        ({"name": "lamp", "watts": None}, r"^room.light.watts: .*None"),
        ({"name": "lamp", "on": "perhaps"}, r"^room.light.on: .*perhaps"),
        (None, r"^room.light"),
        (["lamp"], r"^room.light"),
    ],
)
def test_mistakes_are_one_sentence_that_names_the_key(node: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        fill("light_source", node, "room.light")
    assert "\n" not in str(raised.value)


def test_an_unknown_kind_is_named_with_its_neighbour() -> None:
    with pytest.raises(ConfigError, match=r"no kind of part called 'dor' \(did you mean 'door'\?\).*light_source$"):
        names("dor")


def test_registering_twice_is_refused_for_another_class_only() -> None:
    register("light_source", "lamp")(Lamp)
    with pytest.raises(ValueError, match="light_source 'lamp' is registered twice"):
        register("light_source", "lamp")(Candle)
    register("door", "lamp")(Candle)
    assert part_class("light_source", "lamp") is Lamp and part_class("door", "lamp") is Candle


def test_an_option_without_a_default_is_refused() -> None:
    class Torch:
        def __init__(self, *, batteries: int) -> None:
            self.batteries = batteries

    with pytest.raises(ConfigError, match="option 'batteries' of Torch needs a default"):
        register("light_source", "torch")(Torch)
    assert "torch" not in names("light_source")
