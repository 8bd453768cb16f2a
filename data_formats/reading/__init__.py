"""From files to parsed records, whatever format these are in."""
