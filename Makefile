# make demo: install, generate demonstrations, train a policy for half a minute, evaluate it.
# make compare: the same with three methods at full size, compared on one plan.
# make test: install what the tests need and run them all.
# make quick: the same, but only a test or two of every room.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# The first that runs: pyenv has shims of versions that it does not run.
PYTHON312 ?= $(firstword $(shell for each in python3.12 $(HOME)/.pyenv/versions/3.12.*/bin/python; do \
  "$$each" -c '' 2>/dev/null && echo "$$each"; done) python3.12)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
# Compiling all files to byte code would take longer than what is imported of them takes when it is imported.
INSTALL := $(PIP) install -q --no-compile -c constraints.txt
DOWNLOADED = $(if $(wildcard $(VENV)/wheels),--find-links $(VENV)/wheels)

# robosuite asks for opencv-python, which does not import where libGL is missing; the same release without windows does.
HEADLESS = $(INSTALL) --force-reinstall --no-deps opencv-python-headless

.PHONY: demo demo-image compare test quick gpu second twin docs lint types imports wheel clean

demo: $(VENV)/.demo
	$(BIN)/flowpolicy demo --out runs/demo

compare: $(VENV)/.demo
	$(BIN)/flowpolicy demo --compare --out runs/compare

# make demo-image: the same from pictures, for one policy, with films of what it saw.
demo-image: $(VENV)/.demo
	$(BIN)/flowpolicy demo-image --out runs/demo-image

test: $(VENV)/.dev
	PYTHONSAFEPATH=1 OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist worksteal --durations=25

# Of the files with a quick test alone: importing all of them takes longer than running these.
quick: $(VENV)/.dev
	PYTHONSAFEPATH=1 OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 -m quick $$(grep -rl 'mark\.quick' tests --include='test_*.py')

# torch goes first and alone: with torch present, no other package can pull a second build of it.
$(VENV)/.torch: constraints.txt
	@echo 'installing PyTorch; together with the rest it takes about a minute on two cores'
	@$(PYTHON) -m venv $(VENV)
	@# The largest of the other packages are downloaded meanwhile.
	@$(PIP) download -q --no-deps -c constraints.txt -d $(VENV)/wheels robosuite mujoco scipy & \
	  $(INSTALL) torch && wait $$!
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	@echo 'installing the simulator'
	@$(INSTALL) $(DOWNLOADED) -e '.[robosuite,video]'
	@$(HEADLESS)
	@rm -rf $(VENV)/wheels
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(INSTALL) $(DOWNLOADED) -e '.[sim,franka,dev]'
	$(HEADLESS)
	@rm -rf $(VENV)/wheels
	touch $@

# Everything that a GPU must say, in one run of at most eight minutes; DEVICE=cpu SMALL=--small rehearses it.
gpu: DEVICE ?= cuda
gpu: $(VENV)/.dev
	$(BIN)/flowpolicy bench device --device $(DEVICE) $(SMALL) --seconds 450 --json docs/records/gpu-$(DEVICE).json --overwrite

# Python 3.12, torch 2.11 with CUDA and NumPy 2.5, as an image with a GPU has them: the core tests, and every agent on a
# simulated GPU. Five gigabytes, which CI does without.
SECOND := tests/core tests/nets tests/train/test_loop.py tests/train/test_together.py tests/policy/test_policy.py \
  tests/agents/test_every.py tests/agents/test_simulated_gpu.py tests/data/test_windows.py tests/data/test_transitions.py

second: .venv-gpu/.done
	PYTHONSAFEPATH=1 OMP_NUM_THREADS=1 .venv-gpu/bin/pytest -q -p no:cacheprovider -m 'not sim' $(SECOND)

.venv-gpu/.done: constraints-gpu.txt pyproject.toml
	$(PYTHON312) -m venv .venv-gpu
	.venv-gpu/bin/pip install -q --no-compile -c $< torch numpy
	.venv-gpu/bin/pip install -q --no-compile -c $< -e '.[serve,onnx]' pytest pytest-timeout hypothesis beartype ruckig
	touch $@

# The documentation as a site in build/docs; a link that leads nowhere is an error. Its version 2 will not come: no need to warn.
docs: build/lint
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build -q

# The robot's twin lives apart: it pins numpy 1.26 and mujoco below 3.3.
twin: .venv-twin/.done

.venv-twin/.done: real_robot/twin/twin-constraints.txt
	$(PYTHON) -m venv .venv-twin
	.venv-twin/bin/pip --disable-pip-version-check install -q -c $< franka-sim
	touch $@

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Types, imports and docstrings are read from the unpacked wheel: an editable mapping is invisible to these tools.
build/lint: $(VENV)/.dev FORCE
	rm -rf build && mkdir -p build/lint
	$(BIN)/python -m build --quiet --wheel --no-isolation --outdir build/wheel .
	cd build/lint && unzip -q ../wheel/*.whl && cp ../../pyproject.toml .

types: build/lint
	cp tests/typed_program.py build/lint
	cd build/lint && PYTHONSAFEPATH= ../../$(BIN)/mypy -p flowpolicy -m typed_program

imports: build/lint
	cd build/lint && PYTHONPATH=. ../../$(BIN)/lint-imports

# The wheel alone, in a fresh environment outside the checkout, with its core dependencies only.
wheel: build/lint
	.ci/wheel $(PYTHON) build/wheel constraints.txt

clean:
	rm -rf $(VENV) .venv-gpu build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

FORCE:
