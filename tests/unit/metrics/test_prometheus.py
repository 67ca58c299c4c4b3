"""Rules and alerts: promtool accepts and runs them, and each expression selects what the exporter really exports."""

from __future__ import annotations

import subprocess

import pytest
import yaml

from schedagent.core.settings import load_settings
from schedagent.metrics.catalog import FAMILIES
from schedagent.metrics.server import ADDRESS, PATH
from tests.support.exporter_process import exporting
from tests.support.prometheus_rules import ALERTS, EXPORTED, FOLDER, RECORDED, RULES, TESTS, rules
from tests.support.promql import mistakes
from tests.support.promtool import promtool

pytestmark = pytest.mark.timeout(120)

QUIET = "A machine that does its work"


def check(*words, stdin=b"", cwd=FOLDER):
    """Run promtool; return its exit status and what it said."""
    program = promtool(load_settings())
    done = subprocess.run(
        [program, *map(str, words)], input=stdin, cwd=cwd, capture_output=True, timeout=60, check=False
    )
    return done.returncode, (done.stdout + done.stderr).decode()


@pytest.fixture(scope="module")
def scraped(tmp_path_factory):
    """What a real exporter really exports, with a policy in charge and a recorded run."""
    with exporting(tmp_path_factory.mktemp("scraped")) as process:
        yield process.scrape()


class TestPromtool:
    def test_metrics(self, scraped):
        assert check("check", "metrics", stdin=scraped.text.encode()) == (0, "")

    def test_it_would_say_so(self):
        status, told = check("check", "metrics", stdin=b"# TYPE schedagent_x counter\nschedagent_x 1\n")
        assert (status, "should have" in told) == (3, True)

    def test_configuration(self):
        status, told = check("check", "config", "prometheus.yml")
        assert (status, "2 rule files found" in told) == (0, True), told

    def test_rules(self):
        status, told = check("check", "rules", "--lint=all", "--lint-fatal", RULES.name, ALERTS.name)
        assert status == 0, told

    def test_their_tests(self):
        status, told = check("test", "rules", TESTS.name)
        assert status == 0, told

    @pytest.mark.parametrize(
        ("group", "file", "before", "after"),
        [
            ("A lease that nobody renews", ALERTS, "_left_seconds < 60", "_left_seconds < 61"),
            ("A lease that nobody renews", ALERTS, "_left_seconds < 60", "_left_seconds < 20"),
            ("Error events", RULES, "dispatch_local_dsq_offline|", ""),
            (QUIET, ALERTS, "_used_ratio > 0.8", "_used_ratio > 0.7"),
        ],
    )
    def test_they_notice_a_change(self, tmp_path, group, file, before, after):
        told = yaml.safe_load(TESTS.read_text())
        told["tests"] = [one for one in told["tests"] if one["name"] == group]
        (tmp_path / TESTS.name).write_text(yaml.safe_dump(told))
        for change, status in ((False, 0), (True, 1)):
            for path in (RULES, ALERTS):
                text = path.read_text()
                assert path != file or before in text
                changed = change and path == file
                (tmp_path / path.name).write_text(text.replace(before, after) if changed else text)
            assert check("test", "rules", TESTS.name, cwd=tmp_path)[0] == status


class TestExpressions:
    @pytest.mark.parametrize(
        "rule", [*rules(RULES), *rules(ALERTS)], ids=lambda rule: rule.get("record", rule.get("alert"))
    )
    def test_each_selects_what_there_is(self, rule):
        assert list(mistakes(rule["expr"], EXPORTED, RECORDED)) == []

    def test_what_is_in_the_catalog_is_exported(self, scraped):
        """The names the other tests compare with are those of a real scrape."""
        told = {line.split()[2] for line in scraped.text.splitlines() if line.startswith("# TYPE ")}
        assert told == {one.name for group in FAMILIES.values() for one in group}
        assert scraped.names <= set(EXPORTED)

    @pytest.mark.parametrize(
        ("expression", "wrong"),
        [
            ("rate(schedagent_trip_total[5m])", "no metric schedagent_trip_total"),
            ('schedagent_trips_total{cause="stalled"}', "schedagent_trips_total has no cause 'stalled'"),
            ('schedagent_trips_total{cause=~"stall|eject"}', "schedagent_trips_total has no cause 'eject'"),
            ('1 + sum by (x) (schedagent_up{parts="host"} offset 1d)', "schedagent_up has no label parts"),
            ("histogram_quantile(0.9, rate(schedagent_trial_ratio[5m]))", "no metric schedagent_trial_ratio"),
        ],
    )
    def test_mistakes_are_seen(self, expression, wrong):
        assert list(mistakes(expression, EXPORTED, RECORDED)) == [wrong]


class TestAlerts:
    @pytest.mark.parametrize("rule", rules(ALERTS), ids=lambda rule: rule["alert"])
    def test_each_says_what_it_is_and_what_to_do(self, rule):
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "description", "action"}
        assert all(len(text) > 20 for text in rule["annotations"].values())

    @pytest.mark.parametrize("rule", rules(ALERTS), ids=lambda rule: rule["alert"])
    def test_each_is_seen_to_fire_and_not_to_fire(self, rule):
        """In a test of its own it is quiet first and fires later; its series are on the quiet machine, too."""
        groups = yaml.safe_load(TESTS.read_text())["tests"]
        fired = [
            group
            for group in groups
            for test in group.get("promql_expr_test", [])
            if any(f'alertname="{rule["alert"]}"' in sample["labels"] for sample in test["exp_samples"])
        ]
        assert fired
        for group in fired:
            assert not group["promql_expr_test"][0]["exp_samples"], "it begins quiet"
        [quiet] = [group for group in groups if group["name"] == QUIET]
        given = " ".join(one["series"] for one in quiet["input_series"])
        bases = {name for name in EXPORTED if name in given} | {"up"}
        own = {one["series"].partition("{")[0] for one in fired[0]["input_series"]}
        assert own & bases


def test_the_example_scrapes_the_unit():
    [job] = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": [ADDRESS]}]
    assert job.get("metrics_path", "/metrics") == PATH
