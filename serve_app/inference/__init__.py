"""A model at work: the predictor, its backends, the batcher, and the slot."""
