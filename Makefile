# Each target creates the virtual environment .venv, with the project installed editable, and adds the extras that it needs.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Tests spend much time waiting, so two more processes than CPUs finish sooner.
WORKERS ?= $(shell expr $$(nproc 2>/dev/null || echo 2) + 2)
PYTHONS ?= python3.11 python3.12 python3.13 python3.14
STAMP  := $(VENV)/.installed
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# The lock files contain no settings of this machine: neither its package index nor a local directory of wheels.
COMPILE := $(BIN)/pip-compile --quiet --upgrade --generate-hashes --allow-unsafe --strip-extras \
  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options --resolver backtracking

# The tests start the daemon more than a thousand times; compiling its modules each time would double
# their duration.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run test test-pythons lint format lock papers bench fuzz fleet-soak hostile peers suites \
  docs docs-test pictures dist deb deb-test container-test bare-test clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "smtpd-fork needs Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { echo "no working venv module; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(INSTALL) --editable .
	@touch $@

# $(VENV)/.with-test and so on install an extra of pyproject.toml into the same environment.
$(VENV)/.with-%: $(STAMP)
	$(INSTALL) --editable '.[$*]'
	@touch $@

run: $(STAMP) ## serve on port 2525, mail into ./Maildir (ARGS="..." for options)
	$(BIN)/smtpd-fork $(ARGS)

test: $(VENV)/.with-test ## run all tests (ARGS="..." for pytest; WORKERS=0 for one process)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(ARGS)

test-pythons: ## run all tests on each installed Python of PYTHONS
	@for python in $(PYTHONS); do \
	  if ! $$python -c '' 2>/dev/null; then echo "$$python: not installed"; continue; fi; \
	  echo "$$python: $$($$python --version)"; \
	  $(MAKE) --no-print-directory test PYTHON=$$python VENV=.venv-$$(basename $$python) || exit; \
	done

lint: $(VENV)/.with-test $(VENV)/.with-lint ## run ruff, mypy --strict, and the check of the imports between packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.with-lint ## apply the fixes and the formatting of ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(VENV)/.with-lock ## update the locked dependencies of the image and of the Debian package (needs Python 3.11, as in the image)
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo "the image has Python 3.11; name one: make lock PYTHON=python3.11 VENV=.venv-3.11" >&2; exit 1; }
	CUSTOM_COMPILE_COMMAND="make lock" $(COMPILE) --extra cli --extra dns --extra metrics --extra nats --extra passwords --extra redis --extra rspamd --extra s3 --extra webhook --output-file packaging/image.lock pyproject.toml
	CUSTOM_COMPILE_COMMAND="make lock" $(COMPILE) --only-build-deps --build-deps-for wheel --output-file packaging/build.lock pyproject.toml

papers: $(STAMP) ## generate the files that list the options: docs/options.md, the example, the manual page
	$(BIN)/python -m smtpd_fork.cli.generate_docs

bench: $(VENV)/.with-test $(VENV)/.with-bench ## compare the performance with other servers (ARGS="--quick", "--write", "--only W1,W2")
	$(BIN)/python -m bench $(ARGS)

fuzz: $(VENV)/.with-test ## send random input to sessions and to the clients of other programs (ARGS="--seconds 3600 --seed 1")
	$(BIN)/python tests/fuzz/dovecot.py $(ARGS)
	$(BIN)/python tests/fuzz/hop.py $(ARGS)
	$(BIN)/python tests/fuzz/milter.py $(ARGS)
	$(BIN)/python tests/fuzz/policy.py $(ARGS)
	$(BIN)/python tests/fuzz/rspamd.py $(ARGS)
	$(BIN)/python tests/fuzz/session.py $(ARGS)

fleet-soak: $(VENV)/.with-test ## kill and stop nodes of a fleet under load, and compare all counts (ARGS="--seconds 3600 --seed 1")
	$(BIN)/python tests/fuzz/fleet.py $(ARGS)

hostile: $(VENV)/.with-test ## run 100,000 hostile sessions, and check that memory does not grow (ARGS="--tls --sessions 5000")
	$(BIN)/python tests/fuzz/hostile.py $(ARGS)

peers: $(VENV)/.with-test ## test with real programs, and compare the replies with those of other servers (.ci/run installs them)
	@# Tests of a group run one after another: qpsmtpd sometimes hung at its stop when its tests ran in parallel.
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup -m peers $(ARGS)

suites: $(VENV)/.with-test ## run the tests of aiosmtpd and other projects with the session of smtpd-fork
	$(BIN)/python -m pytest -m suites tests/suites tests/oracle $(ARGS)

docs: $(VENV)/.with-docs ## build the documentation site into build/docs, offline, warnings as errors
	$(BIN)/python -m sphinx -q -W --keep-going -d build/doctrees docs build/docs
	@echo "build/docs/index.html"

docs-test: $(VENV)/.with-test $(VENV)/.with-docs ## build the site without a network, and search it in a browser
	$(BIN)/python -m pytest -m site tests/docs/test_site.py $(ARGS)

pictures: $(VENV)/.with-test ## update README's pictures of the status page; takes 5 minutes (chromium; ARGS="--minutes 1")
	$(BIN)/python tests/docs/pictures.py $(ARGS)

dist: $(VENV)/.with-dist ## build the sdist and the wheel into dist/, and check both
	rm -f dist/smtpd_fork-*.tar.gz dist/smtpd_fork-*.whl
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/smtpd_fork-*
	$(BIN)/check-wheel-contents dist/smtpd_fork-*.whl

deb: $(STAMP) ## build a Debian package into dist/, for this release of Debian and its Python
	packaging/deb/build

deb-test: $(STAMP) ## install the Debian package in a minimal Debian, test its units under systemd, remove it (mmdebstrap; root)
	tests/deb/run

container-test: $(STAMP) ## build the image and deliver a message to it (buildah, podman; root)
	tests/container/run

bare-test: $(STAMP) ## run the commands of README in a Debian with only python3, venv and make (mmdebstrap; root)
	tests/bare/run

clean: ## remove the virtual environments and the caches
	rm -rf $(VENV) .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
