"""What a PromQL expression selects, by a real parser."""

from __future__ import annotations

import promql_parser as promql

VARIABLES = {"$__rate_interval": "5m"}
"""What Grafana puts in; a variable inside a matcher's text may stay as it is."""


def selectors(expression):
    """Return the name and the matchers of every series that an expression selects.

    Raises:
        ValueError: it is no expression.
    """
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    selected = []

    def look(node):
        if isinstance(node, promql.VectorSelector):
            selected.append(node)
        return True

    promql.walk(promql.parse(expression), look, lambda _node: True)
    return [(selector.name, selector.matchers.matchers) for selector in selected]


def mistakes(expression, families, recorded, others=("up", "ALERTS")):
    """Yield what an expression selects that is not there.

    Args:
        families: catalog.FAMILIES' families by the names of their series.
        recorded: names of recording rules.
        others: names that Prometheus itself makes.
    """
    for name, matchers in selectors(expression):
        if name in recorded or name in others:
            continue
        if name not in families:
            yield f"no metric {name}"
            continue
        for matcher in matchers:
            labels = families[name].labels
            if matcher.name in ("instance", "job"):
                continue
            if matcher.name not in labels:
                yield f"{name} has no label {matcher.name}"
                continue
            regular = matcher.op in (promql.MatchOp.Re, promql.MatchOp.NotRe)
            for value in matcher.value.split("|") if regular else [matcher.value]:
                if value not in labels[matcher.name]:
                    yield f"{name} has no {matcher.name} {value!r}"
