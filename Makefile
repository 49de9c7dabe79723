# Two commands set everything up: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-torch check docs soak bench worth zoo clean

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

# One stamp for each set of extras, made anew when what is to be installed changes.
$(VENV)/.%: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing into $(VENV), once: 1 of 2, torch (about 200 MB)"
	@$(INSTALL) torch==2.13.0
	@echo "Installing into $(VENV), once: 2 of 2, fxgraft with the extra '$*'"
	@$(INSTALL) -e ".[$*]"
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/python -m fxgraft.demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal --durations=25

# What depends on torch's private parts (tracing, the passes, compiling), under another torch, as PyPI serves it,
# in an environment of its own: make test-torch TORCH=2.14.1
TORCH ?= 2.14.1
OTHER := .venv-torch-$(TORCH)

$(OTHER)/.test: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(OTHER)
	grep -v '^torch==' constraints.txt > $(OTHER)/constraints.txt
	$(OTHER)/bin/pip install --quiet --disable-pip-version-check -c $(OTHER)/constraints.txt torch==$(TORCH) -e ".[test]"
	@touch $@

test-torch: $(OTHER)/.test
	$(OTHER)/bin/python -m pytest -n logical --maxprocesses 8 --dist worksteal tests/util/test_torch.py tests/capture \
		tests/passes tests/compiling tests/manager/test_background.py tests/manager/test_prefetch.py \
		tests/manager/test_preparing_fails.py tests/manager/test_ranks_apply_together.py \
		tests/manager/test_saving_meanwhile.py tests/optimizers/test_dropped_gradients.py

check: $(VENV)/.check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python tests/wheel_check.py

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# For the night: every property on many more examples, every line interrupted, hundreds of kills, a long run.
soak: $(VENV)/.test
	FXGRAFT_HYPOTHESIS=thorough FXGRAFT_KILLS=300 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal \
		tests/faults tests/hostile tests/checkpoint tests/distributed tests/machine tests/lifecycle tests/blueprints \
		tests/manager/test_threads.py tests/manager/test_background.py tests/compiling tests/soundness tests/optimizers \
		tests/seeds tests/passes
	$(BIN)/python -m benchmarks.soak

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks

# What growing is worth, against fixed sizes: about 9 hours of one idle core, with PROTOCOL=full a few nights. It goes on where it was stopped.
# QUICK=1 runs a few steps of every arm, in a folder that is thrown away.
PROTOCOL ?= short unknown unknown_extra tried tried_again tried_control copies copies_extra brown long long_extra adapters widths guesses measured
worth: $(VENV)/.bench
	$(BIN)/python -m benchmarks.worth.prepare
	$(BIN)/python -m benchmarks.worth $(if $(QUICK),--quick,--protocol $(PROTOCOL))

# In an environment of its own: torchvision and timm want the torch that they were built for. Not in CI.
zoo:
	$(PYTHON) -m venv .venv-zoo
	.venv-zoo/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 torchvision==0.28.0 timm==1.0.31 \
		transformers==5.24.0 -e .
	.venv-zoo/bin/python -m benchmarks.zoo

clean:
	rm -rf $(VENV) .venv-zoo .venv-torch-* runs dist build site .mypy_cache .ruff_cache .pytest_cache .hypothesis
