"""Trainable parts that are added to a model."""
