"""What a run may use of models, and what it has used: calls, tokens and money.

Pure bookkeeping. Money is counted by the price table of the settings, at full price for every token, so what an
endpoint charges for cached tokens may be less.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agents.llm.exchange import ModelRequest, Usage
from schedagent.core.errors import BudgetSpent
from schedagent.core.settings import ModelPrice, Settings

SHORTEST_ANSWER = 256
"""Tokens; with less left than this, nothing useful can be answered."""

LONGEST_ANSWER = 16_384
"""Tokens one answer may have, reasoning included: a policy of 400 lines is about 6000."""

_PER_MILLION = 1e-6
_SEVERAL = "several"


@dataclass(frozen=True)
class UsageRecord:
    """What one step used.

    Args:
        role: agent that asked.
        model: model that answered.
        calls: answered requests.
        input_tokens, output_tokens: sent and answered.
        cost: dollars; None if the price of the model is not known.
        estimated: the endpoint reported no tokens, so they are estimated.
    """

    role: str
    model: str
    calls: int
    input_tokens: int
    output_tokens: int
    cost: float | None
    estimated: bool = False

    @property
    def tokens(self) -> int:
        """Sent and answered together."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True)
class BudgetLimits:
    """What a run may use in all.

    Before a request is sent, its tokens are estimated, so the last answer may pass a limit by the error of an estimate.
    """

    calls: int
    tokens: int
    dollars: float


class Budget:
    """Counts what is used, and refuses when it is used up.

    Args:
        limits: of the whole run, over all its processes.
        prices: of the models whose price is known.
        spent: what earlier processes of this run used.
    """

    def __init__(
        self, limits: BudgetLimits, prices: Iterable[ModelPrice] = (), spent: Iterable[UsageRecord] = ()
    ) -> None:
        self.limits = limits
        self.records = list(spent)
        self._prices = {price.model: price for price in prices}

    @classmethod
    def of(cls, settings: Settings, spent: Iterable[UsageRecord] = ()) -> Budget:
        """Return the budget that the settings name."""
        limits = BudgetLimits(settings.model_max_calls, settings.model_max_tokens, settings.model_max_dollars)
        return cls(limits, settings.model_prices, spent)

    def admit(self, request: ModelRequest) -> int:
        """Return how many tokens the answer to this request may have.

        Raises:
            BudgetSpent: the request, or a short answer to it, would pass a limit. Nothing must be sent then.
        """
        used, limits = total(self.records), self.limits
        if used.calls >= limits.calls:
            raise self._spent(f"{limits.calls} calls", "model_max_calls")
        by_tokens = limits.tokens - used.tokens - request.estimated_tokens
        if by_tokens < SHORTEST_ANSWER:
            raise self._spent(f"{limits.tokens} tokens", "model_max_tokens")
        by_money = self._affordable(request)
        if by_money < SHORTEST_ANSWER:
            raise self._spent(f"${limits.dollars:.2f}", "model_max_dollars")
        return min(LONGEST_ANSWER, by_tokens, by_money)

    def add(self, request: ModelRequest, usage: Usage) -> UsageRecord:
        """Count an answered request."""
        record = self.record(request, usage)
        self.records.append(record)
        return record

    def record(self, request: ModelRequest, usage: Usage) -> UsageRecord:
        """Return what an answered request used, without counting it."""
        price = self._prices.get(request.model)
        cost = None
        if price:
            cost = (usage.input_tokens * price.input + usage.output_tokens * price.output) * _PER_MILLION
        tokens = (usage.input_tokens, usage.output_tokens)
        return UsageRecord(request.role, request.model, 1, *tokens, cost, usage.estimated)

    def _affordable(self, request: ModelRequest) -> int:
        """Tokens of an answer that the money left pays for."""
        price = self._prices.get(request.model)
        if price is None or not (price.input or price.output):
            return LONGEST_ANSWER
        left = self.limits.dollars - known_cost(self.records) - request.estimated_tokens * price.input * _PER_MILLION
        if left < 0:
            return 0
        return int(left / (price.output * _PER_MILLION)) if price.output else LONGEST_ANSWER

    def _spent(self, limit: str, setting: str) -> BudgetSpent:
        return BudgetSpent(
            f"the run's budget for the model, {limit}, is used up: {summary(self.records)}",
            f"a larger {setting} in the settings allows more",
        )


def known_cost(records: Iterable[UsageRecord]) -> float:
    """Return the dollars of those records whose price is known."""
    return sum(record.cost for record in records if record.cost is not None)


def total(records: Sequence[UsageRecord]) -> UsageRecord:
    """Return the sum; its cost is None if nothing in it has a price."""
    priced = [record.cost for record in records if record.cost is not None]
    return UsageRecord(
        _one_of(record.role for record in records),
        _one_of(record.model for record in records),
        sum(record.calls for record in records),
        sum(record.input_tokens for record in records),
        sum(record.output_tokens for record in records),
        sum(priced) if priced else None,
        any(record.estimated for record in records),
    )


def summary(records: Sequence[UsageRecord]) -> str:
    """Return the usage in words, such as "3 calls, 9.4k tokens, $0.02"."""
    used = total(records)
    if not used.calls:
        return "no calls"
    calls = f"{used.calls} call{'s' * (used.calls != 1)}"
    tokens = f"{'about ' * used.estimated}{_thousands(used.tokens)} tokens"
    unpriced = sorted({record.model for record in records if record.cost is None})
    cost = [] if used.cost is None else [_money(used.cost)]
    unknown = [f"price of {', '.join(unpriced)} unknown"] if unpriced else []
    return ", ".join([calls, tokens, *cost, *unknown])


def _one_of(names: Iterable[str]) -> str:
    different = sorted(set(names))
    return different[0] if len(different) == 1 else _SEVERAL if different else ""


def _thousands(number: int) -> str:
    return f"{number / 1000:.1f}k" if number >= 1000 else str(number)


def _money(dollars: float) -> str:
    return "less than $0.01" if 0 < dollars < 0.005 else f"${dollars:.2f}"
