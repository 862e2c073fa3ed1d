"""Code that all packages share: files, parameters, errors, datasets. It imports none of them."""
