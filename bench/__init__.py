"""Benchmarks: `make bench`, or `python -m bench SUITE --json`. Apart from the tests: nothing here asserts a speed."""
