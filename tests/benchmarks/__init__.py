"""How fast it is, against baselines taken side by side: one module a row of the table.

A row module has NAME, GOAL (a text) and `run(quick)`, which returns Measurements. Nothing here is a
test: figures are read and recorded, never asserted.
"""
