"""What the benchmarks of speed share: pairs, contenders, ceilings, fresh processes, tables."""
