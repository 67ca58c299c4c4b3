# SPDX-License-Identifier: GPL-2.0-only
# The verifier: compiles, checks and proves policies of others, and signs. Start as many as there are machines to prove on;
# each has a key of its own, in its state volume. It needs no network when it runs.
#
#   podman build -f docker/verifier.Dockerfile -t schedagent-verifier .
#   podman run --rm --network none --device /dev/kvm -v sockets:/run/schedagent-verifier -v keys:/var/lib/schedagent-verifier \
#     --security-opt seccomp=unconfined schedagent-verifier
#
# seccomp=unconfined: clang runs in namespaces of its own (bubblewrap), which the default filters of some runtimes forbid;
# schedagent doctor shows whether it is needed. Its own filters are loaded in any case.
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
# The agent's image has the same numbers: members of the group may use the verifier.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends \
    bpftool bubblewrap clang-19 libbpf-dev libbpf1 libc6-dev python3 qemu-system-x86 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 970 schedagent \
    && groupadd --gid 972 schedagent-verifier \
    && useradd --uid 972 --gid schedagent-verifier --groups schedagent --home-dir /var/lib/schedagent-verifier \
       --no-log-init schedagent-verifier \
    && install -d -o schedagent-verifier -g schedagent-verifier -m 0700 \
       /var/lib/schedagent-verifier /var/cache/schedagent-verifier \
    && install -d -o schedagent-verifier -g schedagent -m 0750 /run/schedagent-verifier
COPY --from=build /out /
COPY --from=build --chown=schedagent-verifier:schedagent-verifier /kernel/kernels /var/cache/schedagent-verifier/kernels
ENV SCHEDAGENT_STATE=/var/lib/schedagent-verifier \
    SCHEDAGENT_CACHE=/var/cache/schedagent-verifier
VOLUME /var/lib/schedagent-verifier /run/schedagent-verifier
USER 972:972
WORKDIR /var/lib/schedagent-verifier
ENTRYPOINT ["schedagent", "verifier", "serve"]
CMD ["--socket", "/run/schedagent-verifier/verifier.sock"]
