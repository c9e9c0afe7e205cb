"""Where a grid comes from when the graph hides it: what a model is given, and what its blocks are told."""
