"""The commands of `digits` and the sections of params.yaml that mlops declares."""

from core.wings import Command, Section

WORK, REVIEW, PRODUCTION, AZURE = "Work", "Review", "Production", "Azure"
SDK = ("azure.ai.ml", "azure.identity")
MODEL = ("digits.monitoring", "digits.production")
COMMANDS = (
    Command("check", WORK, "mlops.setup.command", "Check params.yaml and this machine"),
    Command("lab", WORK, "mlops.setup.command", "Check a lab of the course"),
    Command("train", WORK, "mlops.jobs.command", "Run the pipeline as a job on Azure ML", SDK),
    Command("sweep", WORK, "mlops.jobs.command", "Try values of params.yaml as jobs", SDK),
    Command("review", REVIEW, "mlops.review.command", "Compare the metrics with main's"),
    Command("restore", REVIEW, "mlops.review.command", "Get checked data from a remote"),
    Command("retrain", REVIEW, "mlops.review.command", "Train with labels from production"),
    Command("merge", REVIEW, "mlops.review.command", "Merge main, with its dvc.lock"),
    Command("deploy", PRODUCTION, "mlops.deploy.command", "Deploy, roll back or destroy", SDK),
    Command("local", PRODUCTION, "mlops.dashboard.command", "Run production locally", MODEL),
    Command("score", PRODUCTION, "mlops.production.command", "Score files in batches", MODEL),
    Command("simulate", PRODUCTION, "mlops.production.command", "Send simulated traffic", MODEL),
    Command("monitor", PRODUCTION, "mlops.production.command", "Look for drift in requests", MODEL),
    Command("verify", AZURE, "mlops.setup.command", "Verify real Azure or GitHub", SDK),
    Command("azure", AZURE, "mlops.setup.command", "Connect, check or disconnect Azure", SDK),
)
SECTIONS = (
    Section("azure", "mlops.azure.settings:Params", required=False),
    Section("review", "mlops.review.gate:Params", required=False),
)
