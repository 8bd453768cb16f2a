"""Image features on disk: what each is known by, how they are kept, how those of a run are computed beforehand.

The frozen vision tower gives the same features for a picture in every epoch and every run, so that they can be
computed once. Knows planned rows and the vision tower. Knows nothing of recipes, adapters or the trainer.
"""
