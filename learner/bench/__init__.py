"""Benchmarks: what is learned, what is forgotten, what it costs, each beside what it is compared to."""
