"""The network: its layers, training, out-of-distribution score, metrics and lineage."""
