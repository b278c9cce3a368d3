"""The messages of the Open Inference Protocol v2 over gRPC. `make proto` writes `open_inference_pb2.py` from the `.proto` file."""
