"""Benchmarks: ours beside upstream's wheel, NIXL and the machine's raw limits. Entry: bench.py."""
