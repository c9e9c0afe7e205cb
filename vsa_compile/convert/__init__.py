"""Judges every attention call of an analysed graph, and rewrites those that become sparse."""
