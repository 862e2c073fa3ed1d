"""The network: its layers, training, out-of-distribution score and lineage."""
