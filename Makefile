# Everything sets itself up: the first target that needs it makes .venv, with nothing but a Python >= 3.11.

PYTHON ?= python3
# newest: the versions in constraints.txt; oldest: the oldest torch that is supported, in an environment of its own.
TORCH ?= newest
ifeq ($(filter newest oldest,$(TORCH)),)
$(error TORCH is newest or oldest, not $(TORCH))
endif
VENV := .venv$(if $(filter oldest,$(TORCH)),-oldest)
OTHER_PINS := $(if $(filter oldest,$(TORCH)),constraints-oldest.txt)
PINS := $(VENV)/constraints.txt
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.docs-installed
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)
SOURCES := src tests examples $(wildcard benchmarks docs)
# A cheap example is one that needs no download and is done in seconds; it is run as it stands.
CHEAP_EXAMPLES := $(wildcard examples/quick_*.py)

.PHONY: help venv demo test test-slow test-hard lint format types examples docs newcomer api dist data clean

help:
	@echo "make demo       quantize the embedded network with and without the contrastive term (minutes)"
	@echo "make test       all tests but the slow ones; make test-slow: those too"
	@echo "make test-hard  the batteries of kills, damages, malicious files and bad numbers in full (an hour)"
	@echo "make lint       ruff; make format: let ruff repair; make types: mypy --strict on src"
	@echo "make examples   run the cheap examples"
	@echo "make docs       the documentation site into site/, where a warning is an error; site/index.html needs no network"
	@echo "make newcomer   what README.md and docs/start.md tell a newcomer, done from a clean clone and timed (minutes)"
	@echo "make data       bring the full CIFAR-10 into data/cifar10 (downloads 140 MB)"
	@echo "make api        write down the public names, options and file formats anew, after a change that is meant"
	@echo "make dist       build the package into dist/ and try the wheel in an environment of its own"
	@echo "make venv       only set up .venv; make clean: remove it and everything made"
	@echo "make TORCH=oldest ...: the same with the oldest torch that is supported, in .venv-oldest"

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt $(OTHER_PINS)
	@python=""; \
	for candidate in $(PYTHON) python3.13 python3.12 python3.11; do \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        python="$$candidate"; break; \
	    fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "clcalib needs Python >= 3.11, and neither $(PYTHON) nor python3.13, 3.12 or 3.11 is one;" \
	        "name yours: make PYTHON=/path/to/python" >&2; exit 1; \
	fi; \
	echo "setting up $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv $(VENV) || { \
	    echo "$$python could not make a virtual environment; on Debian install python3-venv" >&2; exit 1; }
	@awk -F== '!($$1 in seen) { seen[$$1]; print }' $(OTHER_PINS) constraints.txt >$(PINS)
	$(BIN)/python -m pip install --quiet -c $(PINS) uv
	$(BIN)/uv pip install --python $(BIN)/python -c $(PINS) -e ".[vision,dev]"
	@touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP)
	$(PYTEST) -m "not slow"

test-slow: $(STAMP)
	$(PYTEST)

test-hard: $(STAMP)
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/reliability.py

lint: $(STAMP)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

format: $(STAMP)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

types: $(STAMP)
	$(BIN)/mypy

examples: $(STAMP)
	@for example in $(CHEAP_EXAMPLES); do \
	    echo "$$example"; OMP_NUM_THREADS=1 $(BIN)/python "$$example" || exit 1; \
	done

$(DOCS_STAMP): $(STAMP)
	$(BIN)/uv pip install --python $(BIN)/python -c $(PINS) -e ".[docs]"
	@touch $@

# The theme's notice of its own future is no warning of this site.
docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 $(BIN)/python -m mkdocs build --strict --quiet

newcomer: $(STAMP)
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/newcomer.py

api: $(STAMP)
	PYTHONPATH=src:. $(BIN)/python -m tests.architecture.public_api --write

# The wheel is tried outside of this folder, so that nothing but the wheel can be imported.
dist: $(STAMP)
	rm -rf dist
	$(BIN)/uv build --quiet --build-constraint $(PINS) --python $(BIN)/python --out-dir dist
	$(BIN)/uv venv --quiet --python $(BIN)/python dist/environment
	$(BIN)/uv pip install --quiet --python dist/environment/bin/python -c $(PINS) dist/*.whl
	cd dist/environment && OMP_NUM_THREADS=1 bin/clcalib --version && bin/python ../../examples/quick_api.py

data: $(STAMP)
	$(BIN)/clcalib data cifar10 --out data/cifar10

clean:
	rm -rf .venv .venv-oldest runs build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
