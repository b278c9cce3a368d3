"""A model at work: the predictor, what computes it, the batcher, and the slot that holds it."""
