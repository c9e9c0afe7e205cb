"""Finds the grid where the graph hides it: from a model's inputs, for the model's blocks."""
