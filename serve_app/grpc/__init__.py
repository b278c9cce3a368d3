"""The gRPC side: calls of the Open Inference Protocol and health checks. They go through the gateway of the HTTP side."""
