"""The model: network, training, out-of-distribution score and lineage."""
