"""The Grafana dashboards: generated from their table, of Grafana's own types, and about metrics that there are.

Grafana itself is no Debian package. Its types are one on PyPI: grafana-foundation-sdk is generated from the schemas of
Grafana. What it does not know it drops, so whatever is lost on the way through it is nothing that Grafana would read.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import json
import sys
import types
import typing
from enum import Enum

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.support.paths import ROOT
from tests.support.prometheus_rules import ALERTS, EXPORTED, RECORDED, RULES
from tests.support.promql import mistakes

FOLDER = ROOT / "deploy" / "grafana"
FILES = sorted(FOLDER.glob("*.json"))
UNITS = {value for name, value in vars(units).items() if name[0].isupper()}

register_default_plugins()


def load(path):
    return json.loads(path.read_text())


def generator():
    spec = importlib.util.spec_from_file_location("dashboards", FOLDER / "dashboards.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def problems(dashboard):
    """What Grafana would not read of a dashboard, or not read as it is meant."""
    model = Dashboard.from_json(copy.deepcopy(dashboard))
    read = json.loads(JSONEncoder().encode(model))
    return [*_lost(dashboard, read, ""), *_mistyped(model, Dashboard, "")]


def _lost(told, read, where):
    """What is not there any more after it went through Grafana's types; what they add are defaults."""
    if isinstance(told, dict) and isinstance(read, dict):
        for key, value in told.items():
            yield from _lost(value, read[key], f"{where}.{key}") if key in read else [f"{where}.{key} is unknown"]
    elif isinstance(told, list) and isinstance(read, list) and len(told) == len(read):
        for number, (one, other) in enumerate(zip(told, read, strict=True)):
            yield from _lost(one, other, f"{where}[{number}]")
    elif told != read:
        yield f"{where} is read as {read!r}"


def _mistyped(value, hint, where):
    """What is not of the type that the schema names, values of enumerations above all."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        meant = [part for part in parts if (part is types.NoneType) == (value is None)]
        yield from min((list(_mistyped(value, part, where)) for part in meant), key=len)
    elif origin is list and isinstance(value, list):
        for number, one in enumerate(value):
            yield from _mistyped(one, parts[0], f"{where}[{number}]")
    elif origin is dict and isinstance(value, dict):
        for key, one in value.items():
            yield from _mistyped(one, parts[1], f"{where}.{key}")
    elif origin is typing.Literal:
        if value not in parts:
            yield f"{where} is {value!r}, not {parts}"
    elif inspect.isclass(hint) and issubclass(hint, Enum):
        if value not in [one.value for one in hint] and value not in list(hint):
            yield f"{where} is {value!r}, not one of {[one.value for one in hint]}"
    elif hint is float:
        if type(value) not in (int, float):
            yield f"{where} is {value!r}, not a number"
    elif inspect.isclass(origin or hint) and not isinstance(value, origin or hint):
        yield f"{where} is {value!r}, not {hint}"
    elif hasattr(type(value), "from_json"):
        for name, one in typing.get_type_hints(type(value)).items():
            yield from _mistyped(getattr(value, name), one, f"{where}.{name}")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
class TestEach:
    def test_is_what_the_table_makes(self, path):
        assert path.read_text() == json.dumps(generator().dashboard(path.stem), indent=2, ensure_ascii=False) + "\n"

    def test_is_read_by_grafana_as_it_is_meant(self, path):
        assert problems(load(path)) == []

    def test_shows_what_is_exported(self, path):
        for panel in panels(path):
            for target in panel["targets"]:
                assert 'instance=~"$instance"' in target["expr"], "the machine is chosen at the top"
                assert list(mistakes(target["expr"], EXPORTED, RECORDED)) == [], panel["title"]

    def test_has_units_and_the_chosen_source(self, path):
        for panel in panels(path):
            assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
            for asks in (panel, *panel["targets"]):
                assert asks["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert [one["name"] for one in load(path)["templating"]["list"]] == ["datasource", "instance"]

    def test_nothing_overlaps(self, path):
        taken = set()
        for panel in load(path)["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, panel["title"]
            assert max(x for x, _y in cells) < 24
            taken |= cells


def panels(path):
    return [panel for panel in load(path)["panels"] if panel["type"] != "row"]


def test_each_of_the_table_has_its_file():
    assert [path.stem for path in FILES] == sorted(generator().DASHBOARDS)
    found = [load(path) for path in FILES]
    assert len({one["uid"] for one in found}) == len({one["title"] for one in found}) == len(found)


def test_every_metric_is_shown_or_raises_an_alert():
    """What nobody looks at need not be exported."""
    shown = "".join(path.read_text() for path in (*FILES, RULES, ALERTS))
    assert {one.name for one in EXPORTED.values() if one.name not in shown} <= {"schedagent_build_info"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda told: told.__setitem__("titel", "x"), ".titel is unknown"),
        (lambda told: told["panels"][1].__setitem__("grid", 1), ".panels[1].grid is unknown"),
        (lambda told: told["panels"][1]["options"].__setitem__("colour", 1), ".panels[1].options.colour is unknown"),
        (lambda told: told["panels"][1]["options"].__setitem__("colorMode", "loud"), "color_mode is 'loud'"),
        (lambda told: told["panels"][1]["targets"][0].__setitem__("legend", ""), ".targets[0].legend is unknown"),
        (lambda told: told["panels"][1]["gridPos"].__setitem__("w", "wide"), "is 'wide'"),
        (lambda told: told["templating"]["list"][0].__setitem__("type", "kind"), "is 'kind'"),
    ],
)
def test_mistakes_are_seen(change, problem):
    told = load(FOLDER / "overview.json")
    change(told)
    assert any(problem in one for one in problems(told)), problems(told)
