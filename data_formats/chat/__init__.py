"""Formats of conversations: who said what, with media beside or inside."""
