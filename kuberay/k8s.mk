# Targets for Kubernetes, included by the Makefile. They work with any KUBECONFIG, context and namespace:
#   make k8s-deploy K8S_NS=team-a KUBECTL='kubectl --context staging' DOCKER_IMAGE=registry.example/iris-api:1.4.0

K8S_NS ?= mlops
KUBECTL ?= kubectl
DOCKER ?= docker
DOCKER_IMAGE ?= iris-api:latest
TRAIN_IMAGE ?= iris-train:latest
# A folder of kuberay/overlays, or any folder with a kustomization.yaml. TRAIN, SCORE and ADOPT are folders in the same way.
OVERLAY ?= api
TRAIN ?= kuberay/train
SCORE ?= kuberay/score
ADOPT ?= kuberay/adopt
# The command that loads an image into the nodes; empty when they pull it. kind: 'kind load docker-image', minikube: 'minikube image load'.
IMAGE_LOAD ?=
# The command that builds an image; `make build` adds: -t NAME --target STAGE .
IMAGE_BUILD ?= $(DOCKER) build
# The version of the operator that k8s-setup installs.
KUBERAY_VERSION ?= 1.6.2
# The file with the real Secret; empty: kuberay/base/secret.yaml, or kuberay/base/NAMESPACE/secret.yaml for a namespace other than mlops.
K8S_SECRET ?=
K8S_TIMEOUT ?= 600
K8S_PORT ?= 8000
# The port that k8s-nodeport opens on every node; a cluster has each port once.
NODE_PORT ?= 30080
export K8S_SECRET K8S_NS KUBECTL DOCKER_IMAGE TRAIN_IMAGE K8S_TIMEOUT

K8S := $(PYTHON) -m kuberay.ctl

##@ Kubernetes
.PHONY: build k8s-load k8s-setup k8s-setup-kind k8s-secrets k8s-signing-keys k8s-deploy k8s-deploy-mlflow k8s-nodeport \
	k8s-train k8s-adopt k8s-score k8s-data k8s-status k8s-logs k8s-port-forward \
	k8s-mlflow-ui k8s-test k8s-models k8s-promote k8s-rollback k8s-backup k8s-restore k8s-delete k8s-clean k8s-doctor

build: ## build the images DOCKER_IMAGE and TRAIN_IMAGE
	$(IMAGE_BUILD) -t $(DOCKER_IMAGE) --target serve .
	$(IMAGE_BUILD) -t $(TRAIN_IMAGE) --target train .

k8s-load: ## load both images into the nodes with IMAGE_LOAD='kind load docker-image'
	@test -n "$(IMAGE_LOAD)" || { echo "error: set IMAGE_LOAD, like IMAGE_LOAD='minikube image load', or push the images to a registry" >&2; exit 1; }
	$(IMAGE_LOAD) $(DOCKER_IMAGE)
	$(IMAGE_LOAD) $(TRAIN_IMAGE)

k8s-setup: ## install the KubeRay operator (once); without a cluster, start minikube first
	@$(KUBECTL) version >/dev/null 2>&1 || minikube start --cpus 4 --memory 8g
	@$(K8S) setup --version $(KUBERAY_VERSION)

k8s-setup-kind: build ## create a kind cluster with the images and the operator
	@kind get clusters | grep -qx iris || kind create cluster --name iris --config kuberay/kind.yaml
	@$(MAKE) --no-print-directory k8s-load IMAGE_LOAD='kind load docker-image --name iris'
	@$(K8S) setup --version $(KUBERAY_VERSION)

k8s-secrets: ## create the Secrets of OVERLAY that are missing: API key, Redis, MLflow's users
	@$(K8S) secrets $(OVERLAY)

k8s-signing-keys: ## create the key pair for signed models (OVERLAY=signing); to replace it: ARGS=--rotate, then ARGS=--retire
	@$(K8S) signing-keys $(value ARGS)

k8s-deploy: ## deploy OVERLAY (default: the API alone) and wait until it answers
	@$(K8S) deploy $(OVERLAY)

k8s-deploy-mlflow: ## deploy the API with MLflow in the cluster and wait until both answer
	@$(K8S) deploy mlflow

k8s-train: ## train and publish a model in the cluster, and wait until every replica serves it; DATA=table.csv ARGS="--target y"
	@$(K8S) train $(TRAIN) --data='$(subst ','\'',$(value DATA))' --arguments='$(subst ','\'',$(value ARGS))'

k8s-adopt: ## adopt a fitted model in the cluster; MODEL=model.joblib SAMPLE=rows.csv ARGS="--target y --package steps.py"
	@$(K8S) adopt $(ADOPT) --model='$(subst ','\'',$(value MODEL))' --sample='$(subst ','\'',$(value SAMPLE))' --arguments='$(subst ','\'',$(value ARGS))'

k8s-score: ## score a table in the cluster with the served model; DATA=table.csv ARGS="--keep id"
	@$(K8S) score $(SCORE) --data='$(subst ','\'',$(value DATA))' --arguments='$(subst ','\'',$(value ARGS))'

k8s-data: ## list, copy or remove files in the claim data-pvc; ARGS="get out/table scores", ARGS="remove in/table.csv"
	@$(K8S) data $(value ARGS)

k8s-status: ## print the objects, their state and their faults
	@$(K8S) status

k8s-logs: ## print the application's logs; ARGS="--follow --lines 200"
	@$(K8S) logs $(value ARGS)

k8s-port-forward: ## forward 127.0.0.1, port K8S_PORT=8000, to the API
	@$(K8S) forward api $(K8S_PORT)

k8s-nodeport: ## open the API on port NODE_PORT=30080 of every node
	@$(K8S) nodeport $(NODE_PORT)

k8s-mlflow-ui: ## forward 127.0.0.1:5000 to MLflow in the cluster
	@$(K8S) forward mlflow 5000

k8s-test: ## check the health, send a prediction with the key from the Secret, and print a verdict
	@$(K8S) test

k8s-models: ## list the models in the cluster's store
	@$(K8S) models

k8s-promote: ## serve VERSION=…
	@$(K8S) promote $(or $(VERSION),$(error which version? make k8s-promote VERSION=3))

k8s-rollback: ## serve the newest undamaged version that is older than the served one
	@$(K8S) rollback

k8s-backup: ## write models and MLflow into one archive, TO=file.tar; more in ARGS="--data --secrets FILE"
	@$(K8S) backup --to '$(TO)' $(value ARGS)

k8s-restore: ## restore an archive of k8s-backup into empty volumes, FROM=file.tar; into other volumes: ARGS=--merge
	@$(K8S) restore '$(or $(FROM),$(error which archive? make k8s-restore FROM=file.tar))' $(value ARGS)

k8s-delete: ## remove the workloads; volumes and Secrets stay
	@$(K8S) delete

k8s-clean: ## remove everything, including the models
	@$(K8S) clean

k8s-doctor: ## check for known faults, and print the cause and the fix of each
	@$(K8S) doctor

##@ Tests of the deployment
.PHONY: test-manifests test-e2e test-e2e-all

test-manifests: $(VENV)/.dev ## test the YAML without a cluster
	$(BIN)/pytest tests/manifests $(value ARGS)

# Both targets use the cluster of KUBECONFIG, which must have the images (make build k8s-load). With E2E_CLUSTER=folder, the programs
# `up` and `image` of that folder first start a cluster and build the images into it: see tests/e2e/run.
test-e2e: $(VENV)/.dev ## test the main story on a real cluster; empties the namespace mlops first
	tests/e2e/run "$(BIN)/pytest" -m "not long" $(value ARGS)

test-e2e-all: $(VENV)/.dev ## run every end-to-end test
	tests/e2e/run "$(BIN)/pytest" $(value ARGS)
