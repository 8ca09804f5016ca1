"""Filters between an adapter and the batches: pure, vectorised, one state row per series."""
