# Monitoring: included by the Makefile.

# base, no-grafana, storage, or any folder with a kustomization.yaml.
MONITORING ?= base
PROMETHEUS_PORT ?= 9090

##@ Monitoring
.PHONY: monitoring dashboards k8s-monitoring-deploy k8s-monitoring-delete k8s-monitoring-status k8s-monitoring-logs \
	k8s-monitoring-logs-grafana k8s-monitoring-port-forward k8s-monitoring-alerts test-monitoring

monitoring: $(VENV)/.train ## run a Prometheus beside `make serve`, with the rules of the cluster, on 127.0.0.1, PROMETHEUS_PORT=9090
	@exec $(BIN)/python -m monitoring.local_prometheus --port $(PROMETHEUS_PORT) --api $(PORT)

dashboards: $(VENV)/.dev ## write the dashboards, their tables in the docs and the operator's rules from their sources
	$(BIN)/python -m monitoring.dashboards
	$(BIN)/python -m monitoring.panel_docs
	$(BIN)/python -m monitoring.operator_rules

test-monitoring: $(VENV)/.dev ## test rules, routes and dashboards with promtool and amtool, without a cluster
	$(BIN)/pytest tests/monitoring $(ARGS)

k8s-monitoring-deploy: ## deploy Prometheus, Alertmanager and Grafana; a variant with MONITORING=no-grafana or storage
	@$(PYTHON) -m monitoring.stack deploy $(MONITORING)

k8s-monitoring-delete: ## remove Prometheus, Alertmanager and Grafana; serving does not change
	@$(PYTHON) -m monitoring.stack delete $(MONITORING)

k8s-monitoring-status: ## show what runs, the targets that do not answer, and the alerts that fire
	@$(PYTHON) -m monitoring.stack status

k8s-monitoring-logs: ## show the log of Prometheus
	@$(PYTHON) -m monitoring.stack logs prometheus

k8s-monitoring-logs-grafana: ## show the log of Grafana
	@$(PYTHON) -m monitoring.stack logs grafana

k8s-monitoring-alerts: ## show the alerts that were sent, as lines of JSON
	@$(PYTHON) -m monitoring.stack logs alert-log

k8s-monitoring-port-forward: ## open Grafana, Prometheus and Alertmanager on 127.0.0.1, ports 3000, 9090, 9093
	@$(PYTHON) -m monitoring.stack port-forward
