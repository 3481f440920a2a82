# Copyright (c) 2026 The UVN authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

# The system's Python, and no shims of a version manager: ansible-test takes every interpreter it finds on PATH for a real one.
PYTHON := /usr/bin/python3
VENV := $(CURDIR)/.venv
CACHE := $(CURDIR)/.cache
RESULTS := $(CACHE)/test
KERNELS := kernel kernel13
# Each on one of the two kernels, Debian 12's and 13's, so that CI ends in time; Molecule's cluster has both. TESTS_kernel13=tests/kernel is all.
TESTS_kernel13 := $(addprefix tests/kernel/test_,without_vrf.py follow.py guard.py membership.py network.py sites.py)
TESTS_kernel := $(filter-out $(TESTS_kernel13),$(wildcard tests/kernel/test_*.py))
# Of the cluster with Slurm: bookworm has 22.05, trixie 24.11.
SUITE := bookworm
SANITY := $(CACHE)/sanity/ansible_collections/hpc/uvn
LAB := $(CURDIR)/tests/lab/lab
INVENTORY := -i "$$($(LAB) inventory --path)" -i molecule/default/inventory/site.yml

export PATH := $(VENV)/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export ANSIBLE_COLLECTIONS_PATH := $(CACHE)/collections
export ANSIBLE_INJECT_FACT_VARS := false
export PYTHONDONTWRITEBYTECODE := 1
unexport PYTHONPATH PYENV_VERSION VIRTUAL_ENV

PACKAGES := bpftool busybox-static ca-certificates clang cpio debian-archive-keyring e2fsprogs gcc git libbpf-dev libc6-dev llvm make \
	mmdebstrap openssh-client python3-venv qemu-system-x86 qemu-utils shellcheck tar xauth
# Files that git knows or would add, as they are in the work tree.
FILES := git ls-files --cached --others --exclude-standard --deduplicate -z
SHELLCHECK := $(FILES) | xargs -0 grep -lE '^\#!/bin/(ba)?sh|^\# shellcheck shell=' | xargs shellcheck
# What the collection ships; tests of other tools than Ansible's stay out of its sanity tests.
SHIPPED := $(FILES) -- CHANGELOG.rst LICENSE README.md bpf changelogs docs galaxy.yml meta playbooks plugins roles spank \
	tests/config.yml

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: setup ## boot a virtual cluster, roll UVN out, show who reaches whom
	$(LAB) up
	$(LAB) run login1 -- test -e /etc/uvn/site.json || python3 tests/isolation/matrix.py --before
	ansible-playbook $(INVENTORY) playbooks/site.yml
	python3 tests/isolation/matrix.py
	@printf '%s\n' "" "The cluster is up, UVN is in force on login1, c1 and c2. Look around:" \
		"  tests/lab/lab run login1 --user alice    log in as alice (bob and carol are there as well)" \
		"  tests/lab/lab run login1 -- uvn status   see what root sees" \
		"  make demo-down                           take the cluster down"

.PHONY: demo-down
demo-down: ## take the virtual cluster down
	$(LAB) down

.PHONY: test
test: setup ## what CI does
	@# The image's guest needs one processor, and so do the tools beside it; the other stages need all there are.
	{ $(MAKE) image 2>&1 | sed --unbuffered 's/^/image: /'; } & image=$$!; \
	$(MAKE) lint unit fuzz sanity || failed=$$?; wait $$image && exit "$${failed:-0}"
	$(MAKE) kernel
	$(MAKE) cluster
	@printf '\nunit, kernel, isolation and escape tests ended with:\n'
	@for suite in unit $(KERNELS) isolation escape; do printf '%-10s' $$suite; grep -E '^=+ .* in [0-9.]+s' $(RESULTS)/$$suite.log | tail -n 1; done
	@printf '%s\n' 'Not part of it, for time: make slurm, make bench, and what make full does beyond it.'

.PHONY: full
full: export UVN_FULL := 1
full: ## all there is: the whole matrix after each disturbance, all tests on both kernels, both releases of Slurm, longer fuzzing; hours
	$(MAKE) lint unit sanity image
	$(MAKE) fuzz FUZZ_SECONDS=600 FUZZ_SEED=0
	$(MAKE) kernel $(addsuffix =tests/kernel,$(addprefix TESTS_,$(KERNELS)))
	$(MAKE) cluster
	$(MAKE) slurm SUITE=bookworm
	$(MAKE) slurm SUITE=trixie

.PHONY: check
check: $(VENV)/stamp ## what needs neither a guest nor root, in less than a minute
	ruff check .
	yamllint --strict .
	$(SHELLCHECK)
	HYPOTHESIS_PROFILE=dev python3 -m pytest tests/unit --quiet -p no:cacheprovider

.PHONY: lint
lint: setup ## style of Python, YAML, Ansible, shell, documentation and changelog
	ruff check .
	ansible-lint --profile production
	yamllint --strict .
	$(SHELLCHECK)
	antsibull-changelog lint
	antsibull-docs lint-collection-docs --plugin-docs .
	check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

.PHONY: unit
unit: setup ## pure code, no kernel needed
	@mkdir -p $(RESULTS)
	python3 -m pytest tests/unit -p no:cacheprovider --junitxml=$(RESULTS)/unit.xml | tee $(RESULTS)/unit.log

# Each parser that reads from a socket, the seconds for each, and where chance begins, so that what CI met can be had again.
FUZZED := request notifications answers log
FUZZ_SECONDS := 10
FUZZ_SEED := 1
.PHONY: fuzz
fuzz: setup ## coverage-guided fuzzing of what reads from sockets; FUZZ_SECONDS=600 FUZZ_SEED=0 for longer, and for other inputs each time
	@mkdir -p $(CACHE)/fuzz
	for target in $(FUZZED); do cd $(CACHE)/fuzz && python3 $(CURDIR)/tests/fuzz/parsers.py $$target -seed=$(FUZZ_SEED) -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 -verbosity=0; done

# A copy of it at a path that tells Ansible which collection it is.
.PHONY: copy
copy:
	@rm -rf $(SANITY) && mkdir -p $(SANITY)
	@$(SHIPPED) | xargs -0 cp --parents --target-directory=$(SANITY)

.PHONY: sanity
sanity: setup copy ## ansible-test sanity of what the collection ships
	@mkdir -p $(HOME)/.ansible/test/cache
	@# ansible-test would download a bootstrap for pip; the Python at hand has one.
	@for version in 23_1_2 24_2 25_3; do \
		[ -e $(HOME)/.ansible/test/cache/get_pip_$$version.py ] || \
		printf 'import ensurepip\n\nensurepip.bootstrap(default_pip=True)\n' >$(HOME)/.ansible/test/cache/get_pip_$$version.py; done
	cd $(SANITY) && git init --quiet && echo tests/output >.git/info/exclude && ansible-test sanity --venv --requirements --python 3.11 --color no

# make kernel T=tests/kernel/test_guard.py K=nat GUESTS=kernel KEEP=1: some tests, on a guest that stays up for the next time.
GUESTS := $(KERNELS)
.PHONY: kernel
kernel: setup ## users' networks, uvnd, the guard and ingress against real kernels, those of Debian 12 and 13 at once
	@# In namespaces of their own: else systemd, udev and networkd of the guest look at everything that comes and goes, at twice its cost.
	@mkdir -p $(RESULTS)
	$(LAB) up $(GUESTS)
	test_in() { guest=$$1; shift; \
		$(FILES) | tar --create --null --files-from=- | $(LAB) run $$guest -- 'rm -rf uvn && mkdir uvn && tar --extract --directory=uvn'; \
		$(LAB) run $$guest -- 'cd uvn && uname --kernel-release && unshare --mount --net python3 -m pytest '"$$*"' $(if $(K),-k "$(K)") --durations=10 -p no:cacheprovider' \
			| tee $(RESULTS)/$$guest.log | sed --unbuffered "s/^/$$guest: /" || { $(LAB) console $$guest | tail --lines=60; return 1; }; }; \
	runs=(); $(foreach guest,$(GUESTS),test_in $(guest) $(or $(T),$(TESTS_$(guest))) & runs+=($$!);) \
	failed=0; for run in "$${runs[@]}"; do wait $$run || failed=1; done; exit $$failed
	$(if $(KEEP),,$(LAB) down $(GUESTS))

.PHONY: molecule
molecule: cluster image ## the role in the virtual cluster and in an image

.PHONY: cluster
cluster: export ANSIBLE_LOG_PATH := $(CACHE)/ansible.log
cluster: setup ## the role in the virtual cluster: check, converge, idempotence, isolation, escape, removal
	@rm -f $(ANSIBLE_LOG_PATH)
	molecule test

.PHONY: image
image: export ANSIBLE_LOG_PATH := $(CACHE)/image.log
image: export UVN_LAB_DIR := $(CACHE)/lab-image
image: setup ## the role in an image, which then boots; in a lab of its own
	@rm -f $(ANSIBLE_LOG_PATH)
	molecule test --scenario-name build

.PHONY: slurm
slurm: setup ## jobs of two users on the virtual cluster's Slurm, and what they cost
	@mkdir -p $(RESULTS) $(CACHE)/slurm
	$(LAB) up ext $(addsuffix =$(SUITE),login1 c1 c2)
	$(LAB) copy login1:/usr/include/slurm $(CACHE)/slurm
	ansible-playbook --inventory localhost, --connection local playbooks/spank.yml -e ansible_python_interpreter=$(PYTHON) \
		-e uvn_spank_headers=$(CACHE)/slurm -e uvn_node_spank=$(CACHE)/spank.so
	$(LAB) run login1 -- systemctl start munge slurmctld
	for node in c1 c2; do $(LAB) run $$node -- systemctl start munge slurmd; done
	ansible-playbook $(INVENTORY) -i tests/slurm/site.yml playbooks/site.yml
	python3 -m pytest tests/slurm -p no:cacheprovider --junitxml=$(RESULTS)/slurm.xml | tee $(RESULTS)/slurm.log
	python3 tests/bench/jobs.py
	$(LAB) down ext login1 c1 c2

.PHONY: bench
bench: setup ## what membership, logins and the data path cost, in a guest; the results go to .cache/bench
	@mkdir -p $(CACHE)/bench
	$(LAB) up kernel
	$(FILES) | tar --create --null --files-from=- | $(LAB) run kernel -- 'rm -rf uvn && mkdir uvn && tar --extract --directory=uvn'
	accel=$$($(LAB) status | sed -n 's/^images .*, //p'); for name in membership netlink datapath login; do \
		$(LAB) run kernel -- "cd uvn && UVN_BENCH_ACCEL=$$accel python3 -u tests/bench/$$name.py"; done
	$(LAB) copy kernel:uvn/.cache/bench/login.json kernel:uvn/.cache/bench/datapath.json $(CACHE)/bench
	$(LAB) down kernel

.PHONY: plots
plots: setup ## the results of make bench as tables and plots in docs
	python3 tests/bench/report.py

.PHONY: bpf
bpf: setup ## rebuild the BPF objects that the role ships
	$(MAKE) --directory=bpf

.PHONY: build
build: setup copy ## the collection as a tar file in .cache
	ansible-galaxy collection build --force --output-path $(CACHE) $(SANITY)

.PHONY: setup
setup: $(CACHE)/packages $(VENV)/stamp $(CACHE)/collections/ansible_collections/hpc/uvn ## what the other targets need

# Debian packages; only root can install them.
$(CACHE)/packages: Makefile
	@mkdir -p $(CACHE)
	@missing=(); for package in $(PACKAGES); do \
		dpkg-query --show --showformat='$${db:Status-Status}' $$package 2>/dev/null | grep -qx installed || missing+=($$package); done; \
	if [ $${#missing[@]} -gt 0 ]; then \
		[ "$$(id -u)" = 0 ] || { echo "run as root: apt-get install $${missing[*]}" >&2; exit 1; }; \
		apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$${missing[@]}"; fi
	@touch $@

$(VENV)/stamp: requirements-dev.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python3 -m pip install --quiet --requirement requirements-dev.txt
	@touch $@

# Ansible finds a collection by its path only.
$(CACHE)/collections/ansible_collections/hpc/uvn:
	@mkdir -p $(@D)
	@ln --symbolic --force --no-dereference $(CURDIR) $@

.PHONY: clean
clean: ## delete what the other targets made here (the lab's image stays in ~/.cache/uvn-lab)
	rm -rf $(CACHE) $(VENV) .ansible .hypothesis .pytest_cache .ruff_cache .mypy_cache
