#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# Fills the private virtual environment from requirements.lock and links this checkout into it; quick if it is done.
# A stamp is written last and removed first, so an install that was cut short is repaired by the next run.
# usage: deploy/setup/venv.sh VENV
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly venv=$1
readonly python=$venv/bin/python
readonly pip=("$python" -m pip -qq --disable-pip-version-check --no-input)

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: python3 is $(python3 --version 2>&1 || true), needed: 3.11 or later" >&2
    exit 1
}
mkdir -p "$(dirname "$venv")"
exec 9>"$venv.lock"
flock 9 # two set-ups at once: the second waits, then finds the work done

packages_key=$({ python3 -VV && cat requirements.lock; } | sha256sum)
readonly packages_key
if [[ $(cat "$venv/packages.stamp" 2>/dev/null) != "$packages_key" ]] || ! "$python" -c '' 2>/dev/null; then
    echo "filling the virtual environment $venv"
    rm -rf "$venv"
    python3 -m venv "$venv"
    "${pip[@]}" install --require-hashes --only-binary :all: -r requirements.lock
    "${pip[@]}" check
    echo "$packages_key" >"$venv/packages.stamp"
fi

checkout_key=$({ pwd && cat pyproject.toml; } | sha256sum)
readonly checkout_key
if [[ $(cat "$venv/checkout.stamp" 2>/dev/null) != "$checkout_key" ]]; then
    rm -f "$venv/checkout.stamp"
    "${pip[@]}" install --no-deps --no-build-isolation --editable .
    echo "$checkout_key" >"$venv/checkout.stamp"
fi
