"""Formats of documents: pages of pictures and text to go on with, PDF files, and questions about them."""
