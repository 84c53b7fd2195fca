# Everything sets itself up: the first target that needs it makes .venv, with nothing but a Python >= 3.11.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.docs-installed
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)
SOURCES := src tests examples $(wildcard benchmarks docs)
# A cheap example is one that needs no download and is done in seconds; it is run as it stands.
CHEAP_EXAMPLES := $(wildcard examples/quick_*.py)

.PHONY: help venv demo test test-slow test-hard lint format types examples docs data clean

help:
	@echo "make demo       quantize the embedded network with and without the contrastive term (minutes)"
	@echo "make test       all tests but the slow ones; make test-slow: those too"
	@echo "make test-hard  the batteries of kills, damages, malicious files and bad numbers in full (an hour)"
	@echo "make lint       ruff; make format: let ruff repair; make types: mypy --strict on src"
	@echo "make examples   run the cheap examples"
	@echo "make docs       the documentation site into site/, where a warning is an error; site/index.html needs no network"
	@echo "make data       bring the full CIFAR-10 into data/cifar10 (downloads 140 MB)"
	@echo "make venv       only set up .venv; make clean: remove it and everything made"

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
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
	$(BIN)/python -m pip install --quiet -c constraints.txt uv
	$(BIN)/uv pip install --python $(BIN)/python -c constraints.txt -e ".[vision,dev]"
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
	$(BIN)/uv pip install --python $(BIN)/python -c constraints.txt -e ".[docs]"
	@touch $@

# The theme's notice of its own future is no warning of this site.
docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 $(BIN)/python -m mkdocs build --strict --quiet

data: $(STAMP)
	$(BIN)/clcalib data cifar10 --out data/cifar10

clean:
	rm -rf $(VENV) runs build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
