"""What a row looks like to the model, made visible: its turns as spans of tokens, its pictures, and what is wrong.

Reads the collator's batches and never renders a row again, so that what is shown is what training gets. Knows plans,
tokens and pixels; knows nothing of recipes, nor of where rows come from.
"""
