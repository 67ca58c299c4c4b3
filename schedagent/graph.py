"""The state machine: observation -> planning -> execution -> learning, and back to planning until learning ends it."""

from __future__ import annotations

from typing import Any, Protocol

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from schedagent.state import RunState


class Nodes(Protocol):
    """The four nodes; each returns what it changes in the state."""

    def observation(self, state: RunState) -> dict[str, Any]: ...

    def planning(self, state: RunState) -> dict[str, Any]: ...

    def execution(self, state: RunState) -> dict[str, Any]: ...

    def learning(self, state: RunState) -> dict[str, Any]: ...


def build_graph(nodes: Nodes, checkpointer: BaseCheckpointSaver[str]) -> CompiledStateGraph[RunState]:
    """Wire the nodes. Pure routing: every decision is a field of the state."""
    graph = StateGraph(RunState)
    graph.add_node("observation", nodes.observation)
    graph.add_node("planning", nodes.planning)
    graph.add_node("execution", nodes.execution)
    graph.add_node("learning", nodes.learning)
    graph.add_edge(START, "observation")
    graph.add_edge("observation", "planning")
    graph.add_edge("planning", "execution")
    graph.add_edge("execution", "learning")
    graph.add_conditional_edges("learning", after_learning, {"again": "planning", "end": END})
    return graph.compile(checkpointer=checkpointer)


def after_learning(state: RunState) -> str:
    """Where to go from learning."""
    return "end" if state["finished"] else "again"
