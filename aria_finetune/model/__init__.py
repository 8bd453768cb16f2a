"""Aria in memory: loading with 4-bit experts, the fp32 router, LoRA and the vision tower.

Nothing here knows of data sets, recipes or the trainer: functions take plain values.
"""
