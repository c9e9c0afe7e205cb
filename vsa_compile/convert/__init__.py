"""Judges every attention call of an analysed graph, and rewrites the ones that become sparse."""
