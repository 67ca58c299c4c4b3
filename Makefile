# The two commands of the README are `make demo` and `make test`; both set up what they need first.
# Programs of the virtual environment are called by their path, so nothing has to be activated.
SHELL := /bin/bash -euo pipefail
MAKEFLAGS += --no-print-directory

VENV := $(shell python3 -c 'from schedagent.core.settings import load_settings; print(load_settings().venv_dir)')
ifeq ($(VENV),)
$(error the cache folder is unknown, see above; python3 must be there, 3.11 or later)
endif
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# the tests start the program hundreds of times: without byte code each start compiles it
unexport PYTHONDONTWRITEBYTECODE
PREFIX ?= /usr/local
LINK_DIR ?= $(HOME)/.local/bin
INSTALLATION = $(BIN)/python -m deploy.setup.installation --prefix "$(PREFIX)" --destdir "$(DESTDIR)"
C_SOURCES = find kernel_bpf tests -name '*.[ch]' -not -name vmlinux.h -print0

.PHONY: help probe venv setup demo demo-llm test test-unit test-vm test-in-vm test-host test-verifier test-field test-pages older-kernel promtool docs picture man mutation fuzz-socket fuzz-policies linters check check-deb bench bench-verdict bench-oracles bench-limits kernel link install uninstall purge deb fmt lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

venv: # system packages and virtual environment
	@python3 -m schedagent.setup.packages
	@deploy/setup/venv.sh "$(VENV)"

setup: venv ## get all that is needed: system packages, virtual environment, sched_ext kernel
	@$(BIN)/schedagent setup --yes
	@echo "schedagent: $(BIN)/schedagent (make link puts a link to it into $(LINK_DIR))"

demo: setup ## optimise the build of a small bundled C project, from observation to verdict
	$(BIN)/schedagent optimize "make -j" --dir tests/fixtures/cproject --prepare "make clean" --iterations 1 --budget-minutes 10 \
	  || [ $$? -eq 3 ] # an honest "nothing better" is a good end, too

demo-llm: setup ## the same with a scripted model: it composes, patches, is rejected once, repairs, and learns
	$(BIN)/python -m tests.demo_llm || [ $$? -eq 3 ]

test: ## run the tests, those in the micro-VM included but the slow ones; it fails at the end if one part does
	@$(MAKE) -j1 --keep-going test-unit test-in-vm

test-in-vm: setup older-kernel # the second part of make test
	$(PYTEST) -m "not bench and not slow" --timeout 900 --durations 30 tests/vm tests/e2e

test-verifier: setup older-kernel ## take the corpus of broken and correct policies through every gate; prints a table
	$(BIN)/python -m tests.corpus

test-field: setup ## take the kernel's own schedulers and tests through the static gates (needs the network once)
	$(BIN)/python -m tests.field

older-kernel: setup # policies are checked on it, too; a mirror that has none is no error
	@$(BIN)/schedagent kernels fetch --older

promtool: setup # out of Debian's package prometheus, unpacked into the cache folder
	@$(BIN)/python -m tests.support.promtool

test-unit: setup promtool ## run the tests that need no micro-VM, side by side: most of their time they wait
	$(PYTEST) -n $$((2 * $$(nproc))) --dist loadfile --no-loadscope-reorder --timeout 240 --durations 30 tests/unit

test-vm: setup ## run only the tests that need the micro-VM, the slow ones included
	$(PYTEST) -m "vm or e2e"

test-host: setup ## install it on a Debian in QEMU and walk the whole life of a policy there; transcript: build/host-test.txt
	$(PYTEST) -x --capture=no -q -m host tests/host

linters: venv # Debian packages that only checking needs
	@$(BIN)/python -m schedagent.setup.packages --linters

check: setup promtool linters ## types, lint, formats, import rules, shell, container files, manual pages, Prometheus, Grafana
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --quiet --check
	$(C_SOURCES) | xargs -0 -r clang-format-19 --dry-run -Werror
	$(BIN)/mypy & types=$$!; failed=0; \
	  $(PYTEST) -q tests/architecture tests/lint tests/unit/metrics/test_prometheus.py tests/unit/metrics/test_dashboards.py || failed=1; \
	  wait $$types || failed=1; exit $$failed

check-deb: venv linters ## have lintian check the whole Debian package (make check: with few libraries)
	$(BIN)/python -m deploy.setup.package --lint build

bench: setup ## measure (slow, never part of CI)
	$(PYTEST) -m bench -s

bench-verdict: setup ## simulate the rule of the verdict beside the one before: errors, power, cost (two minutes)
	$(BIN)/python -m tests.bench.verdict_rule

bench-oracles: setup ## how often the proof catches each fault that only a run can show: 20 runs each (hours)
	$(BIN)/python -m tests.bench.oracle_power
	$(BIN)/python -m tests.bench.oracle_power --busy
	$(BIN)/python -m tests.bench.oracle_power --alarms
	$(BIN)/python -m tests.bench.oracle_power --alarms --busy

bench-limits: setup ## how limits of cgroups hold under each policy, beside the default: five minutes, then make docs
	$(BIN)/python -m tests.bench.cgroup_limits

test-pages: setup ## open the verifier's HTML pages in Chromium: nothing cut from 360 pixels on, every word legible
	$(BIN)/python -m tests.pages

picture: setup ## draw the README's picture again, from a real run
	$(BIN)/python -m deploy.picture deploy/picture.svg

mutation: setup ## break correct policies in systematic ways, and see which gates notice (slow)
	$(BIN)/python -m tests.mutation --sample 150

fuzz-socket: setup ## send 100,000 random and mutated messages to schedagentd, from users of every kind (minutes)
	$(BIN)/python -m tests.support.socket_fuzz 100000

SECONDS ?= 3600
SEED ?= 1
fuzz-policies: setup ## draw random policies, half with a fault, for SECONDS=3600; VM=1 proves them, too; SEED=1, SURVIVORS=DIR
	$(BIN)/python -m tests.policy_fuzz --seconds $(SECONDS) --seed $(SEED) $(if $(VM),--vm) $(if $(SURVIVORS),--survivors "$(SURVIVORS)")

probe: setup ## compile the scheduling probe that the package brings, after a change of its source
	$(BIN)/python -m kernel_bpf.build.probe

kernel: setup ## download the newest kernel, or the one named: make kernel KERNEL=6.18.15+deb13-amd64
	@$(BIN)/schedagent kernels fetch $(KERNEL)

link: setup ## link schedagent into ~/.local/bin (LINK_DIR=... for elsewhere), for this user and this checkout
	@install -d "$(LINK_DIR)"
	@ln -sfn "$(BIN)/schedagent" "$(LINK_DIR)/schedagent"
	@echo "linked $(LINK_DIR)/schedagent"

install: venv ## install everything, units included (PREFIX=/usr/local DESTDIR= PYTHON=/usr/bin/python3.X)
	@$(INSTALLATION) --python "$(PYTHON)" install

uninstall: venv ## remove what install put there; state and configuration stay
	@$(INSTALLATION) uninstall

purge: venv ## remove state and configuration, too
	@$(INSTALLATION) purge

deb: venv ## make a Debian package of what install installs: dist/schedagent_VERSION_ARCHITECTURE.deb
	@$(BIN)/python -m deploy.setup.package dist

docs: setup ## write the generated tables and dashboards anew
	$(BIN)/python -m tests.documentation
	$(BIN)/python deploy/grafana/dashboards.py

man: venv linters ## show a manual page without installing it: make man PAGE=schedagent-verify.1
	@$(BIN)/python -m deploy.setup.manuals $(PAGE) | mandoc -a

fmt: setup ## format Python and C
	$(BIN)/ruff check --quiet --fix
	$(BIN)/ruff format --quiet
	$(C_SOURCES) | xargs -0 -r clang-format-19 -i

lock: ## pin the newest versions that pyproject.toml allows (needs uv)
	uv pip compile --quiet pyproject.toml --extra dev --universal --generate-hashes --upgrade --no-annotate --no-header \
	  --no-emit-index-url --no-emit-find-links --output-file requirements.lock

clean: ## remove what was built in this folder; the cache folder stays
	@rm -rf .mypy_cache .ruff_cache .pytest_cache build dist *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "kept: $(dir $(VENV))"
