"""Another model in the place of `digits`: a decision tree that names irises by four lengths."""
