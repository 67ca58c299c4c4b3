"""The rules and alerts of deploy/prometheus, and the series that the exporter exports."""

from __future__ import annotations

import yaml

from schedagent.metrics.catalog import FAMILIES
from schedagent.metrics.family import MetricKind
from tests.support.paths import ROOT

FOLDER = ROOT / "deploy" / "prometheus"


RULES, ALERTS, TESTS = (FOLDER / f"schedagent.{kind}.yml" for kind in ("rules", "alerts", "tests"))


def series(families):
    """Families by the names of their series."""
    suffixes = {MetricKind.HISTOGRAM: ("_bucket", "_count", "_sum")}
    return {f"{family.name}{suffix}": family for family in families for suffix in suffixes.get(family.kind, ("",))}


def rules(path):
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


EXPORTED = series(one for group in FAMILIES.values() for one in group)


RECORDED = [rule["record"] for rule in rules(RULES)]
