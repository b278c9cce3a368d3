"""Everything that only Ray Serve needs: ingress hook, autoscaling policy, metrics export, shared counters, local launcher."""
