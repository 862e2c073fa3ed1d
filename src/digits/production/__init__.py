"""Production traffic and its records, and the scoring of files in batches."""
