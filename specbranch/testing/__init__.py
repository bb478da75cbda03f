"""Float64 oracles, comparers and table-driven models, for the tests, the benchmarks and users."""
