"""Trainable parts that are put into a model."""
