"""Kubernetes: the manifests (base, components, overlays) and `kuberay.ctl`, the commands that apply them."""
