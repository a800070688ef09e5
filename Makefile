# `make help` lists the targets. Everything is installed into .venv; `make env` does it once per change of versions.
.PHONY: help env demo lint test test-all test-floor multinode fuzz faults bench gpu docs fmt clean
PYTEST = -m pytest -n $(shell test $$(nproc) -gt 2 && echo 4 || echo 3) --dist loadfile --no-loadscope-reorder
EXTRAS = demo
lint test fuzz faults multinode bench fmt: EXTRAS = demo,dev
test-all: EXTRAS = demo,dev,triton
docs: EXTRAS = demo,dev,docs
help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 12
env:  ## create .venv and install (TORCH_INDEX=URL: where torch comes from; PYTHON=python3.12; EXTRAS=demo,dev)
	@EXTRAS=$(EXTRAS) sh launch/bootstrap.sh
demo: env  ## a Wikipedia dump -> a trained, exported model (DATA=file, DEMO_MB=6)
	@.venv/bin/wikillm demo $(if $(DATA),--data '$(DATA)') $(if $(DEMO_MB),--demo-mb '$(DEMO_MB)')
lint: env  ## style, types, import layers
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy -n 2 && .venv/bin/lint-imports
test: lint  ## lint, then the tests that need no GPU, without the deep ones
	@.venv/bin/python $(PYTEST) --durations=15
test-all: lint  ## also the deep tests and those on several nodes (as root: needs sshd and pdsh)
	@WIKILLM_MULTINODE=1 .venv/bin/python $(PYTEST) -m 'not large' --durations=30
test-floor:  ## unit and contract tests on Python 3.12 with the lowest versions allowed (.venv-floor)
	@VENV=.venv-floor CONSTRAINTS=constraints-floor.txt EXTRAS=demo,dev PYTHON=$(or $(PYTHON),python3.12) sh launch/bootstrap.sh && .venv-floor/bin/python $(PYTEST) tests/contract tests/unit
multinode: env  ## every launcher and every failure on two nodes (as root: needs sshd and pdsh; also mpirun and slurm-wlm)
	@WIKILLM_MULTINODE=1 .venv/bin/python -m pytest -v tests/e2e/test_multinode.py tests/e2e/test_elastic.py tests/e2e/test_slurm.py
fuzz: env  ## other inputs to readers, settings and messages each time (FUZZ=500: times what a commit sees)
	@WIKILLM_FUZZ=$(or $(FUZZ),500) .venv/bin/python -m pytest -q tests/fuzz
faults: env  ## kill, damage and disturb N tiny runs each way (N=20 FAULTS=kill,corrupt ARGS='--stock --seed 7')
	@.venv/bin/python -m tests.faults.campaign --trials $(or $(N),20) --faults $(or $(FAULTS),all) $(ARGS)
bench: env  ## a training step beside Hugging Face's Trainer and bare PyTorch (ARGS='--hidden 256 --vocab 32000')
	@.venv/bin/python benchmarks/train.py $(ARGS)
gpu:  ## measure on this machine's GPU in BUDGET seconds (STEPS='tests losses' ARGS='--text FILE --write')
	@$(or $(wildcard .venv/bin/python),python3) benchmarks/gpu.py --budget $(or $(BUDGET),540) $(if $(STEPS),--only $(STEPS)) $(ARGS)
docs: env  ## check the docs (twins, links, commands) and build the site: build/site/index.html
	@.venv/bin/python -m pytest -q tests/contract/test_docs.py tests/contract/test_readme.py tests/contract/test_readme_on_ranks.py && .venv/bin/python docs/site.py
fmt: env  ## format the code and fix what ruff can
	@.venv/bin/ruff format . && .venv/bin/ruff check --fix .
clean:  ## remove caches; .venv, runs/, stores/ and data stay
	@rm -rf build dist .*_cache .hypothesis && find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
