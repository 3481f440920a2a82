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
SANITY := $(CACHE)/sanity/ansible_collections/hpc/uvn
LAB := $(CURDIR)/tests/lab/lab
INVENTORY := -i "$$($(LAB) inventory --path)" -i molecule/default/inventory/site.yml

export PATH := $(VENV)/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export ANSIBLE_COLLECTIONS_PATH := $(CACHE)/collections
export ANSIBLE_INJECT_FACT_VARS := false
export PYTHONDONTWRITEBYTECODE := 1
unexport PYTHONPATH PYENV_VERSION VIRTUAL_ENV

PACKAGES := bpftool busybox-static ca-certificates clang cpio debian-archive-keyring e2fsprogs git libbpf-dev llvm make \
	mmdebstrap openssh-client python3-venv qemu-system-x86 qemu-utils shellcheck tar xauth
# Files that git knows or would add, as they are in the work tree.
FILES := git ls-files --cached --others --exclude-standard --deduplicate -z
# What the collection ships; tests of other tools than Ansible's stay out of its sanity tests.
SHIPPED := $(FILES) -- CHANGELOG.rst LICENSE README.md bpf changelogs docs galaxy.yml meta playbooks plugins roles \
	tests/config.yml tests/sanity

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
test: lint unit sanity kernel molecule ## everything, as CI does
	@printf '\nunit, kernel and isolation tests ended with:\n'
	@for suite in unit kernel isolation; do grep -E '^=+ .* in [0-9.]+s' $(RESULTS)/$$suite.log | tail -n 1; done

.PHONY: lint
lint: setup ## style of Python, YAML, Ansible, shell, documentation and changelog
	ruff check .
	ansible-lint --profile production
	yamllint --strict .
	$(FILES) | xargs -0 grep -lE '^#!/bin/(ba)?sh|^# shellcheck shell=' | xargs shellcheck
	antsibull-changelog lint
	antsibull-docs lint-collection-docs --plugin-docs .

.PHONY: unit
unit: setup ## pure code, no kernel needed
	@mkdir -p $(RESULTS)
	python3 -m pytest tests/unit -p no:cacheprovider --junitxml=$(RESULTS)/unit.xml | tee $(RESULTS)/unit.log

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

.PHONY: kernel
kernel: setup ## users' networks and membership against the kernel of a guest
	@mkdir -p $(RESULTS)
	$(LAB) up kernel
	$(FILES) | tar --create --null --files-from=- | $(LAB) run kernel -- 'rm -rf uvn && mkdir uvn && tar --extract --directory=uvn'
	$(LAB) run kernel -- 'cd uvn && python3 -m pytest tests/kernel -p no:cacheprovider' | tee $(RESULTS)/kernel.log
	$(LAB) down kernel

.PHONY: molecule
molecule: setup ## the role in the virtual cluster: check, converge, idempotence, isolation, removal
	molecule test

.PHONY: bench
bench: setup ## what membership costs, in a guest
	$(LAB) up kernel
	$(FILES) | tar --create --null --files-from=- | $(LAB) run kernel -- 'rm -rf uvn && mkdir uvn && tar --extract --directory=uvn'
	$(LAB) run kernel -- 'cd uvn && for file in tests/bench/*.py; do python3 $$file; done'
	$(LAB) down kernel

.PHONY: bpf
bpf: setup ## rebuild the membership program that the role ships
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
