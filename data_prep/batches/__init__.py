"""Stored cases as packed batches, for training and evaluation."""
