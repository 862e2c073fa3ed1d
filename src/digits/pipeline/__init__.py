"""One module a DVC stage, of the same name."""
