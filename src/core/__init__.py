"""Code shared by all packages: files, parameters, messages, data sets. It imports none of them."""
