"""Behind `make k8s-*`: what a person would do with kubectl, with the waiting and the explaining. Needs Python and kubectl only."""
