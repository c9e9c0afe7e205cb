# Every target sets up what it needs: a virtual environment in .venv, from Python, pip and a C++ compiler alone.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.dev
MINUTES ?= 10

.PHONY: demo test slow check style types quick fuzz mutants bench gpu format clean

# One extra of pyproject.toml each; the demo needs neither the tests' tools nor triton.
$(VENV)/.dev $(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet torch==2.13.0
	$(RUN) -m pip install --quiet --editable '.[$(@F:.%=%)]'
	touch $@

demo: $(VENV)/.demo  ## the main job: a real Wan transformer, sparse, on this machine
	$(RUN) examples/demo.py

test: $(READY)  ## every property, on CPU, with branch coverage
	$(RUN) -m pytest -n 2 --dist worksteal --cov -m "not slow"

slow: $(READY)  ## the same properties on more models and more kinds of GPU, and the demo
	$(RUN) -m pytest -n 2 --dist worksteal -m slow

check: $(READY)  ## format, lint, types and the quick tests, in under a minute
	$(MAKE) --jobs 2 style types quick

style: $(READY)
	$(VENV)/bin/ruff format --check --quiet .
	$(VENV)/bin/ruff check --quiet .

types: $(READY)
	$(VENV)/bin/pyright > $(VENV)/pyright.log || (cat $(VENV)/pyright.log; false)

quick: $(READY)
	$(RUN) -m pytest -q -n 2 -m "quick and not seconds and not slow" $$(grep -rl --include='test_*.py' 'mark.quick' tests)

fuzz: $(READY)  ## hypothesis for MINUTES, with its example database kept
	$(RUN) tests/fuzz.py --minutes $(MINUTES)

mutants: $(READY)  ## faults put into the sources, one by one: which test notices each?
	$(RUN) tests/mutants.py

bench: $(READY)  ## speed against dense attention, and of the analysis, as tables and as JSON
	$(RUN) -m vsa_compile bench
	$(RUN) benchmarks/attention_cpu.py
	$(RUN) benchmarks/analysis_time.py

gpu: $(READY)  ## what only a GPU can show; small cases under compute-sanitizer where it is installed
	$(RUN) -m pytest -n 4 --dist worksteal tests/gpu

format: $(READY)
	$(VENV)/bin/ruff check --fix --quiet .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
