"""What the converters share: reading fields, filling in media, making turns into a draft."""
