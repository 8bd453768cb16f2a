"""Checkpoints that are whole or not there: sealing, choosing, training state, disk space; knows no trainer."""
