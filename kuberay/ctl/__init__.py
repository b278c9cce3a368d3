"""The commands behind `make k8s-*`: kubectl with waiting and explanations. They need only Python's standard library and kubectl."""
