"""The agent service, `schedagent daemon`: unprivileged, it watches this machine, recommends, and does what it may.

Purpose of each module: `looking` measures, `drift` says what is usual and what is not any more, `findings` makes
recommendations of that and of finished runs, `limits` says what may be begun now, `acting` carries recommendations
out (the lab through the wiring, the host through schedagentd), `keeping` renews the leases of what was deployed, `loop`
ties them together. `drift` and `limits` are pure.

May import: schedagent.core, repo_store, agents, kernel_bpf; of schedagent the wiring, the approvals, the client of
schedagentd, and of schedagentd what it measures and judges with (tasks, breaker, deployment, systemd).
"""
