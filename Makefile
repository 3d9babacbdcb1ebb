# `make demo` and `make test` are all a newcomer needs: each makes .venv and installs first.
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 2
INSTALLED := .venv/.installed

.PHONY: demo test test-all lint types bench campaign clean

demo: $(INSTALLED)
	rm -rf runs/demo
	$(BIN)/mixerflow train fast-clothes --out runs/demo
	$(BIN)/mixerflow sample runs/demo -n 64 --temperature 0.8
	$(BIN)/mixerflow evaluate runs/demo

test: $(INSTALLED)
	$(BIN)/pytest -n $(JOBS) --dist worksteal

test-all: $(INSTALLED)
	$(BIN)/pytest -m "slow or not slow"
	MIXERFLOW_CHECK_TYPES=1 $(BIN)/pytest tests/test_noise.py tests/test_core.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(INSTALLED)
	$(BIN)/basedpyright

bench: .venv/.installed-bench
	$(BIN)/python -m benchmarks.speed --quick --out runs/speed.json > /dev/null

campaign: $(INSTALLED) # goes on where it stopped
	$(BIN)/python -m campaign --jobs $(JOBS) --write docs/reliability.md

.venv/.installed-bench: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	touch $@

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv runs
