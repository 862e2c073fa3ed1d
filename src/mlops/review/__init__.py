"""Compare a change with its base by the metrics that git has, and judge it."""
