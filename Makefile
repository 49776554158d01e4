# Each target sets up what it needs: a virtual environment in .venv, with the project editable.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Much of a test is waiting: two more processes than processors.
WORKERS ?= $(shell expr $$(nproc 2>/dev/null || echo 2) + 2)
PYTHONS ?= python3.11 python3.12 python3.13
STAMP  := $(VENV)/.installed
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Nothing of this machine in the result: no index, no folder of wheels.
COMPILE := $(BIN)/pip-compile --quiet --upgrade --generate-hashes --allow-unsafe --strip-extras \
  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options --resolver backtracking

.PHONY: help run test test-pythons lint format lock papers bench fuzz hostile peers suites container-test bare-test clean

help: ## say what each target does
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "smtpd-fork needs Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { echo "no working venv module; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(INSTALL) --editable .
	@touch $@

# $(VENV)/.with-test and so on: an extra of pyproject.toml, added to the same environment.
$(VENV)/.with-%: $(STAMP)
	$(INSTALL) --editable '.[$*]'
	@touch $@

run: $(STAMP) ## serve on port 2525, mail into ./Maildir (ARGS="..." for options)
	$(BIN)/smtpd-fork $(ARGS)

test: $(VENV)/.with-test ## the whole test suite (ARGS="..." for pytest; WORKERS=0 for one process)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(ARGS)

test-pythons: ## the whole test suite on each Python of PYTHONS that is there
	@for python in $(PYTHONS); do \
	  if ! $$python -c '' 2>/dev/null; then echo "$$python: not here"; continue; fi; \
	  echo "$$python: $$($$python --version)"; \
	  $(MAKE) --no-print-directory test PYTHON=$$python VENV=.venv-$$(basename $$python) || exit; \
	done

lint: $(VENV)/.with-test $(VENV)/.with-lint ## ruff, mypy --strict, and the floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.with-lint ## let ruff put things in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(VENV)/.with-lock ## work out again what the image is built of (with Python 3.11, as the image has it)
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo "the image has Python 3.11; name one: make lock PYTHON=python3.11 VENV=.venv-3.11" >&2; exit 1; }
	CUSTOM_COMPILE_COMMAND="make lock" $(COMPILE) --extra dns --extra metrics --output-file packaging/image.lock pyproject.toml
	CUSTOM_COMPILE_COMMAND="make lock" $(COMPILE) --only-build-deps --build-deps-for wheel --output-file packaging/build.lock pyproject.toml

papers: $(STAMP) ## write what is made of the options' definitions: tables, example, manual page
	$(BIN)/python -m smtpd_fork.cli.generate_docs

bench: $(VENV)/.with-test $(VENV)/.with-bench ## measure beside other servers (ARGS="--quick", "--write", "--only W1,W2")
	$(BIN)/python -m bench $(ARGS)

fuzz: $(VENV)/.with-test ## throw garbage at sessions (ARGS="--seconds 3600 --seed 1")
	$(BIN)/python tests/fuzz/session.py $(ARGS)

hostile: $(VENV)/.with-test ## run 100,000 hostile sessions, see that memory stays flat (ARGS="--tls --sessions 5000")
	$(BIN)/python tests/fuzz/hostile.py $(ARGS)

peers: $(VENV)/.with-test ## mail from many real programs, and our answers beside other servers' (.ci/run installs them)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist load -m peers $(ARGS)

suites: $(VENV)/.with-test ## other projects' own tests with our session in place of aiosmtpd's
	$(BIN)/python -m pytest -m suites tests/suites $(ARGS)

container-test: $(STAMP) ## build the image and deliver a message to it (buildah, podman; root)
	tests/container/run

bare-test: $(STAMP) ## the commands of README where only python3, venv and make are (mmdebstrap; root)
	tests/bare/run

clean: ## forget the environment and the caches
	rm -rf $(VENV) .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
