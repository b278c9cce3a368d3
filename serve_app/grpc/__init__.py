"""The gRPC side: the calls of the Open Inference Protocol and of health checking, over the gateway of the HTTP side."""
