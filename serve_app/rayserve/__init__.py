"""The modules that depend on Ray Serve: ingress hook, autoscaling policy, metrics export, rate counter, local launcher."""
