"""Metrics, zero-shot, explanations, reports."""
