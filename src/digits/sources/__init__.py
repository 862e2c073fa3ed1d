"""Readers of digits: CSV, IDX, archives of images, and digits rendered from fonts."""
