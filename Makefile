PYTHON ?= python3
WORKERS ?= 2
FUZZ ?= 2000
export OMP_NUM_THREADS ?= 1

.PHONY: help .venv demo test fuzz test-matrix benchmarks lint clean

help:
	@echo "make .venv   the environment: pinned by constraints.txt, with a host (ms-vlmeval), tests and linters"
	@echo "make demo    evaluate the small model in the box and its truncated variants, print the table"
	@echo "make test    run the tests (WORKERS=$(WORKERS) processes)"
	@echo "make fuzz    random names, prompts, result folders and explanation files, FUZZ=$(FUZZ) of each"
	@echo "make test-matrix  the engine and Qwen-VL on old and new transformers (an environment each, 7 GB)"
	@echo "make benchmarks  every kind of benchmark of the host on generated tables; writes docs/benchmarks.md"
	@echo "make lint    ruff on everything, mypy on the package"
	@echo "make clean   remove caches and build folders; .venv and outputs stay"

.venv: .venv/.complete

# The marker is written last: an interrupted build has none and is begun afresh.
.venv/.complete: setup.py pyproject.toml constraints.txt
	@test -f $@ || $(PYTHON) -m venv --clear .venv
	@rm -f $@
	.venv/bin/python -m pip install -c constraints.txt -e ".[ms,qwen,test,lint,matrix]"
	@touch $@

demo: .venv
	.venv/bin/redrel demo

test: .venv
	.venv/bin/python -m pytest -n $(WORKERS) --dist loadfile

fuzz: .venv
	FUZZ=$(FUZZ) .venv/bin/python -m pytest -n $(WORKERS) --dist loadfile --timeout 0 tests/test_fuzz_*.py

test-matrix: .venv
	.venv/bin/python -m nox

benchmarks: .venv
	.venv/bin/python tools/benchmarks.py

lint: .venv
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy redrel_vlmeval

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
