# SPDX-License-Identifier: GPL-2.0-only
# The agent side: plans, measures in micro-VMs, remembers. It neither signs nor loads: it uses a verifier
# (verifier.Dockerfile) over a socket in a shared volume, and trusts its key after: schedagent keys trust.
#
#   podman build -f docker/agent.Dockerfile -t schedagent-agent .
#   podman run --rm --device /dev/kvm -v sockets:/run/schedagent-verifier -v state:/var/lib/schedagent \
#     schedagent-agent optimize --workload "make -j" --dir /srv/project
#
# Without /dev/kvm the micro-VM is emulated: it works, but slower.
FROM debian:trixie-slim AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# Versions are those of the Debian release that FROM names.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY *.md pyproject.toml requirements.lock ./
COPY deploy deploy
COPY agents agents
COPY kernel_bpf kernel_bpf
COPY repo_store repo_store
COPY schedagent schedagent
COPY verifier verifier
RUN deploy/setup/venv.sh /venv \
    && /venv/bin/python -m deploy.setup.installation --prefix /usr --destdir /out install
RUN SCHEDAGENT_CACHE=/kernel /venv/bin/schedagent kernels fetch

FROM debian:trixie-slim
# The verifier's image has the same numbers: members of the group may use it.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libbpf1 python3 qemu-system-x86 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 970 schedagent \
    && useradd --uid 971 --gid schedagent --home-dir /var/lib/schedagent --no-log-init schedagent \
    && install -d -o schedagent -g schedagent -m 0700 /var/lib/schedagent /var/cache/schedagent
COPY --from=build /out /
COPY --from=build --chown=schedagent:schedagent /kernel/kernels /var/cache/schedagent/kernels
ENV SCHEDAGENT_STATE=/var/lib/schedagent \
    SCHEDAGENT_CACHE=/var/cache/schedagent \
    SCHEDAGENT_VERIFIER_SOCKET=/run/schedagent-verifier/verifier.sock
VOLUME /var/lib/schedagent
USER 971:970
WORKDIR /var/lib/schedagent
ENTRYPOINT ["schedagent"]
CMD ["daemon"]
