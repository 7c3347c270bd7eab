"""Stored cases as packed batches, for training and for evaluation alike."""
