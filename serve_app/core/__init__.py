"""What an answer is made of: pure code, no Ray, no FastAPI, no MLflow."""
