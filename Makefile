# `make help` lists the targets. Everything is installed into .venv; `make env` does it once per change of versions.
.PHONY: help env demo test multinode fuzz lint fmt clean
help:  ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 8
env:  ## create .venv and install (TORCH_INDEX=URL: where torch comes from; PYTHON=python3.12)
	@sh launch/bootstrap.sh
demo: env  ## a Wikipedia dump -> a trained, exported model (DATA=file, DEMO_MB=6)
	@.venv/bin/wikillm demo $(if $(DATA),--data '$(DATA)') $(if $(DEMO_MB),--demo-mb '$(DEMO_MB)')
lint: env  ## style, types, import layers
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && .venv/bin/lint-imports
test: lint  ## lint, then every test that needs no GPU
	@.venv/bin/python -m pytest --durations=15
multinode: env  ## every launcher and every failure on two nodes (needs root, sshd, pdsh; with mpirun and slurm-wlm also these; 13 minutes)
	@WIKILLM_MULTINODE=1 .venv/bin/python -m pytest -v tests/e2e/test_multinode.py tests/e2e/test_slurm.py
fuzz: env  ## readers, settings and messages by inputs that are other ones each time, for hours (FUZZ=500: times what a commit sees)
	@WIKILLM_FUZZ=$(or $(FUZZ),500) .venv/bin/python -m pytest -q tests/fuzz
fmt: env  ## format the code and mend what ruff can
	@.venv/bin/ruff format . && .venv/bin/ruff check --fix .
clean:  ## remove caches; .venv, runs/, stores/ and data stay
	@rm -rf build dist .*_cache .hypothesis && find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
