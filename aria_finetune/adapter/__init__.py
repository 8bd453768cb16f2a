"""What a run leaves behind: saving an adapter, merging it into its base, exporting it.

Works on files, tensor by tensor; knows nothing of the trainer.
"""
