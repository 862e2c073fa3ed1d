"""The digit recogniser: the model, which a team replaces with its own.

sources     readers of digits: CSV, IDX, archives of images, and digits rendered from fonts
model       the network, its training, out-of-distribution score and lineage
evaluation  metrics of a set of digits
runtime     modules that are copied into the model folder: the loader and its dependencies
serving     the code of the online endpoint and the batch endpoint
production  simulated traffic, records of requests, batch scoring of files
monitoring  histograms of requests, the drift test, the analysis, the report
pipeline    one module for each stage of dvc.yaml, with the same name
"""
