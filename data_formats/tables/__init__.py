"""Formats of containers and plain tables: folders of media, WebDataset, Parquet rows, and columns that a user names."""
