# Monitoring: included by the Makefile.

# base, no-grafana, storage, or any folder with a kustomization.yaml.
MONITORING ?= base
PROMETHEUS_PORT ?= 9090

##@ Monitoring
.PHONY: monitoring dashboards k8s-monitoring-deploy k8s-monitoring-delete k8s-monitoring-status k8s-monitoring-logs \
	k8s-monitoring-logs-grafana k8s-monitoring-port-forward k8s-monitoring-alerts test-monitoring

monitoring: $(VENV)/.train ## a Prometheus on 127.0.0.1, port PROMETHEUS_PORT=9090, beside `make serve`, with the rules of the cluster
	@exec $(BIN)/python -m monitoring.local_prometheus --port $(PROMETHEUS_PORT) --api $(PORT)

dashboards: $(VENV)/.dev ## write the dashboards, their tables in the docs and the operator's rules anew from their sources
	$(BIN)/python -m monitoring.dashboards
	$(BIN)/python -m monitoring.panel_docs
	$(BIN)/python -m monitoring.operator_rules

test-monitoring: $(VENV)/.dev ## rules, routes and dashboards with promtool and amtool, without a cluster
	$(BIN)/pytest tests/monitoring $(ARGS)

k8s-monitoring-deploy: ## deploy Prometheus, Alertmanager and Grafana; MONITORING=no-grafana or storage for less or more
	@$(PYTHON) -m monitoring.stack deploy $(MONITORING)

k8s-monitoring-delete: ## remove them; serving is not touched
	@$(PYTHON) -m monitoring.stack delete $(MONITORING)

k8s-monitoring-status: ## what runs, what is not scraped, what fires
	@$(PYTHON) -m monitoring.stack status

k8s-monitoring-logs: ## Prometheus' log
	@$(PYTHON) -m monitoring.stack logs prometheus

k8s-monitoring-logs-grafana: ## Grafana's log
	@$(PYTHON) -m monitoring.stack logs grafana

k8s-monitoring-alerts: ## the alerts that were sent, one JSON line each
	@$(PYTHON) -m monitoring.stack logs alert-log

k8s-monitoring-port-forward: ## Grafana, Prometheus and Alertmanager on 127.0.0.1, ports 3000, 9090, 9093
	@$(PYTHON) -m monitoring.stack port-forward
