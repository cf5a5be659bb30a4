"""The archive: ingest once, read many times."""
