"""Benchmarks: one program a row of the table; run and read, never asserted."""
