"""The budget: calls, tokens and money each end a run's questions; usage is told in words."""

from __future__ import annotations

import pytest

from agents.llm.budget import LONGEST_ANSWER, Budget, BudgetLimits, UsageRecord, summary, total
from agents.llm.exchange import ModelRequest, Usage
from agents.llm.model import open_model
from schedagent.core.errors import BudgetSpent, ModelError
from tests.support.model_server import ModelServer
from tests.support.scripted_endpoint import (
    GOOD,
    LIST_POLICIES,
    PRICES,
    PROSE,
    QUESTION,
    Choice,
    ask,
    list_policies,
    settings_for,
)

WIDE = BudgetLimits(100, 10**9, 10**9)
REQUEST = ModelRequest("planning", 1, "small", ({"role": "user", "content": "x" * 4000},))


def used(role="planning", model="small", tokens=(3000, 1000), cost=0.01, calls=1, estimated=False):
    return UsageRecord(role, model, calls, *tokens, cost, estimated)


def test_calls_are_bounded_over_all_questions():
    budget = Budget(BudgetLimits(3, 10**9, 10**9))
    with ModelServer(lambda _body: LIST_POLICIES) as server:
        with pytest.raises(BudgetSpent, match="3 calls, is used up: 3 calls, ") as caught:
            ask(server, tools=[list_policies([])], budget=budget)
        with pytest.raises(BudgetSpent):
            ask(server, budget=budget)
    assert len(server.chats) == 3
    assert isinstance(caught.value, ModelError)
    assert "model_max_calls" in caught.value.hint


def test_tokens_are_bounded_by_what_the_endpoint_reports():
    greedy = {**PROSE, "usage": {"input": 9_000, "output": 800}}
    with ModelServer([greedy, GOOD]) as server, pytest.raises(BudgetSpent, match="10000 tokens"):
        ask(server, budget=Budget(BudgetLimits(100, 10_000, 10**9)))
    assert len(server.chats) == 1


def test_money_is_bounded_where_the_price_is_known():
    greedy = {**PROSE, "usage": {"input": 40_000, "output": 2_500}}  # $0.08 + $0.02
    limits = BudgetLimits(100, 10**9, 0.10)
    with ModelServer([greedy, GOOD]) as server:
        with pytest.raises(BudgetSpent, match=r"\$0.10, is used up: 1 call, 42.5k tokens, \$0.10"):
            ask(server, budget=Budget(limits, PRICES))
        assert len(server.chats) == 1
    with ModelServer([greedy, GOOD]) as server:
        assert ask(server, budget=Budget(limits)).usage.cost is None


def test_endless_answers_are_held_to_what_is_left():
    assert Budget(WIDE).admit(REQUEST) == LONGEST_ANSWER
    left = Budget(BudgetLimits(9, 3000, 10**9)).admit(REQUEST)
    assert 1900 < left < 2000
    assert Budget(BudgetLimits(9, 10**9, 0.010), PRICES).admit(REQUEST) == pytest.approx(1000, abs=20)
    with ModelServer([GOOD]) as server:
        ask(server, budget=Budget(BudgetLimits(9, 3000, 10**9)))
    assert server.chats[0]["max_completion_tokens"] < 3000


@pytest.mark.parametrize("limits", [BudgetLimits(0, 10**9, 1), BudgetLimits(9, 1200, 1), BudgetLimits(9, 10**9, 0.001)])
def test_what_cannot_be_paid_is_not_sent(limits):
    with pytest.raises(BudgetSpent):
        Budget(limits, PRICES).admit(REQUEST)


def test_earlier_processes_of_the_run_count():
    budget = Budget(BudgetLimits(2, 10**9, 10**9), spent=[used(), used()])
    with pytest.raises(BudgetSpent):
        budget.admit(REQUEST)


def test_settings_name_the_limits(tmp_path):
    budget = Budget.of(settings_for(None, model_max_calls=7, model_prices=PRICES))
    assert budget.limits == BudgetLimits(7, 300_000, 1.0)
    assert budget.add(REQUEST, Usage(1_000_000, 500_000)).cost == pytest.approx(6.0)


def test_usage_that_is_not_reported_is_estimated_and_says_so():
    with ModelServer([{**GOOD, "usage": None}]) as server:
        answer = ask(server)
    assert answer.usage.estimated
    assert 150 < answer.usage.input_tokens < 400
    assert 5 < answer.usage.output_tokens < 30
    assert summary([answer.usage]).startswith("1 call, about ")


def test_usage_is_recorded_for_each_question():
    with ModelServer(
        [{**LIST_POLICIES, "usage": {"input": 900, "output": 100}}, {**GOOD, "usage": {"input": 1400, "output": 50}}]
    ) as server:
        settings = settings_for(server, model_prices=PRICES)
        budget = Budget.of(settings)
        answer = open_model(settings, "execution", budget=budget).ask("s", QUESTION, Choice, [list_policies([])])
    assert answer.usage == UsageRecord("execution", "small", 2, 2300, 150, pytest.approx(0.0058))
    assert total(budget.records) == answer.usage


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([], "no calls"),
        ([used()], "1 call, 4.0k tokens, $0.01"),
        (
            [used(), used("learning", tokens=(4000, 400)), used(tokens=(900, 100), cost=0.001)],
            "3 calls, 9.4k tokens, $0.02",
        ),
        ([used(tokens=(10, 5), cost=0.00001)], "1 call, 15 tokens, less than $0.01"),
        ([used(cost=0.0)], "1 call, 4.0k tokens, $0.00"),
        ([used(cost=None)], "1 call, 4.0k tokens, price of small unknown"),
        ([used(), used(model="b", cost=None)], "2 calls, 8.0k tokens, $0.01, price of b unknown"),
        ([used(), used(estimated=True)], "2 calls, about 8.0k tokens, $0.02"),
    ],
)
def test_summary(records, words):
    assert summary(records) == words
