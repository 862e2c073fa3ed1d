"""Send traffic to what is deployed, score files with it, and monitor it."""
