"""The digit recogniser, which a team replaces by its own model.

sources     readers of digits: CSV, IDX, archives of images, and digits rendered from fonts
model       the network, its training, out-of-distribution score and lineage
evaluation  metrics of a set of digits
runtime     modules that travel in the model folder: the loader and what it needs
serving     the code of the online and the batch endpoint
production  simulated traffic, records of requests, scoring of files
monitoring  histograms of requests, the drift test, the analysis, the report
pipeline    one module for each stage of dvc.yaml, of the same name
"""
