# Each target sets up what it needs: a virtual environment in .venv, with the project editable.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Much of a test is waiting: two more processes than processors.
WORKERS ?= $(shell expr $$(nproc 2>/dev/null || echo 2) + 2)
PYTHONS ?= python3.11 python3.12 python3.13 python3.14
STAMP  := $(VENV)/.installed
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Nothing of this machine in the result: no index, no folder of wheels.
COMPILE := $(BIN)/pip-compile --quiet --upgrade --generate-hashes --allow-unsafe --strip-extras \
  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options --resolver backtracking

# The tests start the daemon more than a thousand times: compiling its modules each time would double
# their duration.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run test test-pythons lint format lock papers bench fuzz fleet-soak hostile peers suites \
  docs docs-test pictures dist deb deb-test container-test bare-test clean

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
	CUSTOM_COMPILE_COMMAND="make lock" $(COMPILE) --extra cli --extra dns --extra metrics --extra nats --extra passwords --extra redis --extra rspamd --extra s3 --extra webhook --output-file packaging/image.lock pyproject.toml
	CUSTOM_COMPILE_COMMAND="make lock" $(COMPILE) --only-build-deps --build-deps-for wheel --output-file packaging/build.lock pyproject.toml

papers: $(STAMP) ## write what is made of the options' definitions: tables, example, manual page
	$(BIN)/python -m smtpd_fork.cli.generate_docs

bench: $(VENV)/.with-test $(VENV)/.with-bench ## measure beside other servers (ARGS="--quick", "--write", "--only W1,W2")
	$(BIN)/python -m bench $(ARGS)

fuzz: $(VENV)/.with-test ## throw garbage at sessions, and at the clients of next hops, milters, policy servers, rspamd and Dovecot (ARGS="--seconds 3600 --seed 1")
	$(BIN)/python tests/fuzz/dovecot.py $(ARGS)
	$(BIN)/python tests/fuzz/hop.py $(ARGS)
	$(BIN)/python tests/fuzz/milter.py $(ARGS)
	$(BIN)/python tests/fuzz/policy.py $(ARGS)
	$(BIN)/python tests/fuzz/rspamd.py $(ARGS)
	$(BIN)/python tests/fuzz/session.py $(ARGS)

fleet-soak: $(VENV)/.with-test ## kill and stop a fleet under load, see that its counts stay exact (ARGS="--seconds 3600 --seed 1")
	$(BIN)/python tests/fuzz/fleet.py $(ARGS)

hostile: $(VENV)/.with-test ## run 100,000 hostile sessions, see that memory stays flat (ARGS="--tls --sessions 5000")
	$(BIN)/python tests/fuzz/hostile.py $(ARGS)

peers: $(VENV)/.with-test ## mail from many real programs, and our answers beside other servers' (.ci/run installs them)
	@# Tests of a group run one after another: with qpsmtpd's side by side, a stop of it hung at times.
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup -m peers $(ARGS)

suites: $(VENV)/.with-test ## aiosmtpd's and other projects' own tests with our session
	$(BIN)/python -m pytest -m suites tests/suites tests/oracle $(ARGS)

docs: $(VENV)/.with-docs ## build the documentation site into build/docs, offline, warnings as errors
	$(BIN)/python -m sphinx -q -W --keep-going -d build/doctrees docs build/docs
	@echo "build/docs/index.html"

docs-test: $(VENV)/.with-test $(VENV)/.with-docs ## build the site without a network, search it in a browser
	$(BIN)/python -m pytest -m site tests/docs/test_site.py $(ARGS)

pictures: $(VENV)/.with-test ## take README's pictures of the status page anew, in 5 minutes (chromium; ARGS="--minutes 1")
	$(BIN)/python tests/docs/pictures.py $(ARGS)

dist: $(VENV)/.with-dist ## build the sdist and the wheel into dist/, and check both
	rm -f dist/smtpd_fork-*.tar.gz dist/smtpd_fork-*.whl
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/smtpd_fork-*
	$(BIN)/check-wheel-contents dist/smtpd_fork-*.whl

deb: $(STAMP) ## build a package for this Debian, for its own Python, into dist/
	packaging/deb/build

deb-test: $(STAMP) ## install the package in a minimal Debian, test its units under systemd, remove it (mmdebstrap; root)
	tests/deb/run

container-test: $(STAMP) ## build the image and deliver a message to it (buildah, podman; root)
	tests/container/run

bare-test: $(STAMP) ## the commands of README where only python3, venv and make are (mmdebstrap; root)
	tests/bare/run

clean: ## forget the environment and the caches
	rm -rf $(VENV) .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
