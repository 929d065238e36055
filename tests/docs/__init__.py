"""The README, the manual and the benchmarks' figures, held against the code."""
