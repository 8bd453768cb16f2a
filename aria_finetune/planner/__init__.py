"""What a run will take before it starts: bytes by component, peak by phase, work, time. Arithmetic on plain values.

Knows neither torch nor recipes nor how rows are read.
"""
