"""An emulator of Azure Machine Learning for tests and laptops: one process, on loopback only.

It answers the part of Azure's management API that the package azure-ai-ml calls, runs online
endpoints with Azure's own inference server, batch endpoints and jobs as processes, and keeps blobs
in Azurite.

    python -m azureml_emulator --folder DIR [--azurite PATH] [--container NAME]

    from azureml_emulator.client import connect    # an MLClient for the emulator of a folder
    from azureml_emulator.server import Emulator   # the emulator in this process
"""
