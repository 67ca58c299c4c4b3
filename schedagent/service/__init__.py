"""The agent service, `schedagent daemon`: unprivileged, it watches this machine, recommends, and does what it may.

`reading` measures, `drift` finds what is no longer as usual, `findings` makes recommendations from that and from
finished runs, `limits` decides what may begin now, `acting` carries recommendations out (the lab through `run`, the
host through schedagentd), `keeping` renews the leases of what was deployed, `pruning` removes what is old, `loop` ties
them together. `drift` and `limits` are pure.

May import: schedagent.run, schedagent.report, schedagent.approval, schedagent.client, schedagent.retention, repo_store,
kernel_bpf.observe, schedagent.core.
"""
