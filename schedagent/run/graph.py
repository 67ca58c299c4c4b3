"""The state machine: observation -> planning -> execution -> learning, and back to planning until learning ends it.

After planning, and before the end, stand approvals: nodes that let a run pass if nothing has to be approved or all is
decided, and otherwise stop the process there (a LangGraph interrupt). The next process resumes at the same place.
"""

from __future__ import annotations

from typing import Any, Protocol

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import interrupt

from schedagent.core.approval import ApprovalRequest, ApprovalStage, Decision
from schedagent.run.state import RunState


class Approvals(Protocol):
    """See schedagent.approval.approvals.Approvals."""

    def request(self, stage: ApprovalStage, iteration: int) -> ApprovalRequest | None: ...

    def decision(self, request: ApprovalRequest) -> Decision | None: ...

    def ask(self, request: ApprovalRequest) -> dict[str, Any]: ...


class Node(Protocol):
    """One node of the graph: returns what it changes in the state."""

    def __call__(self, state: RunState) -> dict[str, Any]: ...


class Nodes(Protocol):
    """The four agents and the end; each returns what it changes in the state."""

    def observation(self, state: RunState) -> dict[str, Any]: ...

    def planning(self, state: RunState) -> dict[str, Any]: ...

    def execution(self, state: RunState) -> dict[str, Any]: ...

    def learning(self, state: RunState) -> dict[str, Any]: ...

    def ending(self, state: RunState) -> dict[str, Any]: ...


def build_graph(
    nodes: Nodes, approvals: Approvals, checkpointer: BaseCheckpointSaver[str]
) -> CompiledStateGraph[RunState]:
    """Wire the nodes. Pure routing: every decision is a field of the state."""
    graph = StateGraph(RunState)
    graph.add_node("observation", nodes.observation)
    graph.add_node("planning", nodes.planning)
    graph.add_node("plan_approval", approval(approvals, ApprovalStage.PLAN))
    graph.add_node("execution", nodes.execution)
    graph.add_node("learning", nodes.learning)
    graph.add_node("deploy_approval", approval(approvals, ApprovalStage.DEPLOY))
    graph.add_node("ending", nodes.ending)
    graph.add_edge(START, "observation")
    graph.add_edge("observation", "planning")
    graph.add_edge("planning", "plan_approval")
    graph.add_conditional_edges("plan_approval", after_plan, {"carry out": "execution", "rejected": "learning"})
    graph.add_edge("execution", "learning")
    graph.add_conditional_edges("learning", after_learning, {"again": "planning", "end": "deploy_approval"})
    graph.add_edge("deploy_approval", "ending")
    graph.add_edge("ending", END)
    return graph.compile(checkpointer=checkpointer)


def approval(approvals: Approvals, stage: ApprovalStage) -> Node:
    """Return the node that waits, if need be, until a person has decided.

    Whoever decides stores the decision first and then runs the graph again, so the value with which LangGraph could
    answer an interrupt is not used: it would be lost with the process.
    """

    def node(state: RunState) -> dict[str, Any]:
        request = approvals.request(stage, state["iteration"])
        if request is None:
            return {"rejected": False}
        while (decision := approvals.decision(request)) is None:
            interrupt(approvals.ask(request))
        return {"rejected": not decision.approved}

    return node


def after_plan(state: RunState) -> str:
    """Where to go from a plan: what was rejected is not carried out, but learned from."""
    return "rejected" if state["rejected"] else "carry out"


def after_learning(state: RunState) -> str:
    """Where to go from learning."""
    return "end" if state["finished"] else "again"
