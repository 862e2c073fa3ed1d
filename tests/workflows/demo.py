"""`make demo`: the whole life of the digit recogniser on this machine, told as it happens.

A copy of what is committed goes the whole way: trained, reviewed, deployed, asked, watched,
retrained, reviewed and deployed again. Nothing in it is played but the addresses: GitHub is the
one of loopback.py, where act runs the real workflow files, Azure ML is `digits local`, Azure Blob
is Azurite. To take minutes it trains two epochs, and an eighth of the traffic comes as fast as it
is answered; its gate is twice as wide, since the first commit has the figures of sixteen epochs.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
import webbrowser
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
for place in (HERE.parents[1], HERE.parent, HERE.parent / "support", HERE):
    sys.path.insert(0, str(place))

import run as targets  # noqa: E402
from conftest import NAME, ROOT, Azurite, Project  # noqa: E402
from light import Emulator  # noqa: E402
from loopback import GitHub  # noqa: E402
from records import Pull, Run  # noqa: E402
from test_flow import ACCOUNT, identities  # noqa: E402
from test_release import identity  # noqa: E402

WORKSPACE = "demo"
SHORTER = (  # in params.yaml
    (r"^epochs: \d+", "epochs: 2"),
    (r"step_seconds: [\d.]+", "step_seconds: 1.0"),
    (r"requests_an_hour: [\d.]+", "requests_an_hour: 12.0"),
    # Two epochs are worse than sixteen, which the first commit has.
    (r"tolerance: 0.003", "tolerance: 0.006"),
    (r"limit: 0.005", "limit: 0.01"),
)
SIMULATE = (NAME, "simulate", "--workspace", "local", "--speed", "max")
DEPLOYED = {"reproduce": "success", "apply": "success", "record": "success"}
# Requests until the scanner breaks, of all phases and of the two in which the scripts come: what
# it spoils is no script to learn, and no retraining is proposed.
UNTIL_SCANNER, OF_SCRIPTS = "4320", "2304"
LOG_CHARACTERS = 4000  # of a workflow that went wrong
WATCHED = {"look": "success", "issue": "success"}
BACK = 0.03  # that accuracy by labels rises at least, from the drift to the model retrained


@dataclass
class Story:
    """A person's clone, the repository on GitHub, and the services."""

    work: Project
    github: GitHub
    emulator: Emulator
    began: float
    drifted: str = ""  # the log of the look that saw the drift

    def chapter(self, title: str, text: str) -> None:
        """Print a heading with the time that has passed, and what is going to happen."""
        seconds = int(time.monotonic() - self.began)
        print(f"\n[{seconds // 60}:{seconds % 60:02}] {title}\n{text}\n", flush=True)

    def shell(self, *command: str, show: str = "") -> str:
        """Run a command as a person would; print it and the lines that `show` is found in."""
        print(f"  $ {' '.join(command)}", flush=True)
        output = self.work.run(*command, DIGITS_LOCAL_WORKSPACE=WORKSPACE)
        for line in output.splitlines():
            if line.strip() and re.search(show, line):
                print(f"    {line}", flush=True)
        return output

    def told(self, run: Run, jobs: dict[str, str], show: str) -> None:
        """Print how a workflow ended and lines of its log; fail unless its jobs ended so."""
        ended = ", ".join(f"{job}: {result}" for job, result in run.jobs.items())
        print(f"  {run.workflow}, started by {run.event}: {ended}", flush=True)
        for line in dict.fromkeys(run.log.splitlines()):
            if re.search(show, line):
                print(f"    {line.strip()}", flush=True)
        assert run.jobs == jobs, run.log[-LOG_CHARACTERS:]

    def comment(self, pull: Pull, lines: int) -> None:
        """Let the checks of a pull request run; print how its comment begins."""
        for run in self.github.settle():
            self.told(run, run.jobs, "^review: the gate")
        assert pull.comments, self.github.runs[-1].log[-LOG_CHARACTERS:]
        for line in pull.comments[0]["body"].splitlines()[1:lines]:
            print(f"    {line}", flush=True)

    def commit(self, message: str) -> None:
        """Commit everything."""
        self.work.git("add", "--all")
        self.work.git("commit", "--quiet", "--allow-empty", "--message", message)

    def merge(self) -> Run:
        """Push the clone's main to GitHub, as a merge does, and let deploy.yml run."""
        self.work.git("push", "--quiet", str(self.github.origin), "main")
        head = self.github.head("main")
        return self.github.act("deploy.yml", "push", head, {"ref": "refs/heads/main"})

    def look(self) -> Run:
        """Let monitor.yml run, as it does each morning."""
        return self.github.act(
            "monitor.yml", "schedule", self.github.head("main"), {"schedule": "41 5 * * *"}
        )

    # The chapters -------------------------------------------------------------------------------

    def train(self) -> None:
        """Data science: the pipeline."""
        self.chapter(
            "Data science",
            "Data, model and every figure come out of one command; DVC runs what changed. "
            "(Shorter than life: two epochs, an eighth of the traffic, a gate twice as wide.)",
        )
        self.shell("dvc", "repro", show="Running stage|up to date")
        self.commit("A model that knows MNIST")
        targets.show_metrics(self.work.root)
        self.shell("dvc", "push", "--quiet", "--run-cache", "--remote", "main")
        self.work.git("push", "--quiet", str(self.github.origin), "main")

    def review(self) -> None:
        """Review: a change that makes the model worse is not merged."""
        self.chapter(
            "Review",
            "A student wants to train in larger batches. GitHub's actions make the pipeline anew "
            "and say what that does.",
        )
        self.work.git("checkout", "--quiet", "-b", "faster")
        self.work.edit("params.yaml", "batch_size: 64\n", "batch_size: 4096\n")
        self.commit("Faster: larger batches")
        self.github.push(self.work.root, Pull(7, "faster"))
        self.work.git("checkout", "--quiet", "main")
        pull = self.github.pulls[7]
        self.comment(pull, 14)
        mergeable = self.github.mergeable(pull)
        print(f"  may it be merged? {'yes' if mergeable else 'no'}", flush=True)
        assert not mergeable
        pull.state = "closed"

    def deploy(self) -> None:
        """Cloud: main is deployed."""
        self.chapter(
            "Cloud",
            "Main is deployed: its own code makes the bytes anew and goes on only if dvc.lock "
            "does not change by a byte.",
        )
        self.told(self.merge(), DEPLOYED, "is live with all traffic|smoke test")

    def produce(self) -> None:
        """Production: traffic comes, drift is seen."""
        self.chapter(
            "Production",
            "A quiet week of MNIST; then Devanagari arrives slowly, then Japanese.",
        )
        self.shell(*SIMULATE, "--requests", UNTIL_SCANNER, show="right|sent")
        self.chapter("Monitoring", "Each morning monitor.yml looks at what was collected.")
        run = self.look()
        self.drifted = run.log
        self.told(
            run,
            WATCHED | {"retrain": "success", "propose": "success"},
            r"drift|#\d+: (opened|updated)",
        )
        (issue,) = self.github.issues
        print(f"  the issue that it opened: {issue['title']}", flush=True)
        for line in issue["body"].splitlines():
            if line.startswith("| "):
                print(f"    {line}", flush=True)

    def retrain(self) -> None:
        """The circle: the retraining is reviewed and merged."""
        branch = self.github.git(
            "for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads/retrain-*"
        )
        pull = self.github.open_link(branch)
        self.chapter(
            "Retraining",
            f"It also made the branch {pull.branch}: a model that has learnt the labelled digits "
            "of production and some of each script. A person opens its pull request by the link in "
            "the issue; the checks compare it with main.",
        )
        self.comment(pull, 24)
        assert self.github.mergeable(pull)
        self.chapter("Merge", "A person merges. The new model goes live beside the old one.")
        self.work.git("pull", "--quiet", "--no-rebase", str(self.github.origin), pull.branch)
        pull.state = "closed"
        self.told(self.merge(), DEPLOYED, "is live with all traffic|traffic")

    def end(self) -> None:
        """Production again: the alarm ends."""
        self.chapter(
            "Production again",
            "The same traffic, from where Devanagari came.",
        )
        labelled = [
            f"data/labelled/{path.name}" for path in self.work.root.glob("data/labelled/*.dvc")
        ]
        self.shell("dvc", "pull", "--quiet", "--remote", "main", "prepare", *labelled)
        told = self.shell(
            *SIMULATE,
            "--from",
            "devanagari_arrives",
            "--requests",
            OF_SCRIPTS,
            show="right|sent",
        )
        assert "devanagari" in told
        run = self.look()
        self.told(run, WATCHED, r"drift|#\d+: closed")
        assert self.github.issues[0]["state"] == "closed"
        print(f"  {back(self.drifted, run.log)}", flush=True)


def accuracy(log: str) -> float:
    """Return what `digits monitor` tells of the labels that have come, as a share."""
    found = re.search(r"accuracy by labels ([\d.]+)%", log)
    assert found, f"no accuracy by labels is told:\n{log[-LOG_CHARACTERS:]}"
    return float(found[1]) / 100


def back(before: str, after: str) -> str:
    """Say what accuracy was and is by the logs of two looks; fail unless it has risen."""
    was, now = accuracy(before), accuracy(after)
    told = f"accuracy by labels: {was:.2%} with the drift, {now:.2%} now"
    assert now >= was + BACK, f"{told}: it is not back"
    return told


def copy(target: Path) -> Project:
    """Return a copy of what is committed, with the environment and what DVC has cached."""
    work = Project(ROOT).clone(target)
    (target / "node_modules").symlink_to(ROOT / "node_modules")
    cache = ROOT / ".dvc" / "cache"
    if cache.exists():
        shutil.copytree(cache, target / ".dvc" / "cache", copy_function=link)
    for pattern, value in SHORTER:
        path = target / "params.yaml"
        text, count = re.subn(pattern, value, path.read_text("utf-8"), flags=re.M)
        assert count, pattern
        path.write_text(text, "utf-8", newline="\n")
    (target / ".git" / "info" / "exclude").write_text("node_modules\n.emulator\n")
    work.git("remote", "remove", "origin")
    work.git("checkout", "--quiet", "-B", "main")
    return work


def link(source: str, target: str) -> None:
    """Give a file, which nobody changes, a second name; copy it to another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def main() -> None:
    """Tell the story in a temporary folder; nothing of it stays."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--stay", action="store_true", help="until Enter, with the page")
    asked = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="digits-demo-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "tmp").mkdir()  # TensorFlow leaves files in the one of who trains
        os.environ |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder / "tmp"))
        azurite = Azurite(folder / "azurite")
        emulator = Emulator(folder / "emulator", page=True)
        emulator.folder.mkdir()
        azurite.start()
        try:
            emulator.start()
            with GitHub(folder / "github") as github:
                work = copy(folder / "clone")
                (work.root / ".emulator").symlink_to(emulator.folder)
                setting = ("connection_string", azurite.connection_string)
                work.dvc("remote", "modify", "--local", "--quiet", "main", *setting)
                github.variables = {
                    "AZURE_STORAGE_ACCOUNT": ACCOUNT,
                    "AZURE_ML_WORKSPACE": WORKSPACE,
                    "AZURE_TENANT_ID": "tenant",
                    "DEPLOY_TO": "local",
                } | {
                    f"AZURE_{name.upper()}_CLIENT_ID": name
                    for name in ("reader", "main", "deployer")
                }
                github.environment = identities(azurite) | {
                    "IDENTITY_main": identity(azurite, write=True),
                    "IDENTITY_deployer": identity(azurite, write=False),
                    "EMULATOR": str(emulator.folder),
                    "DIGITS_LOCAL_WORKSPACE": WORKSPACE,
                }
                page = json.loads((emulator.folder / "address.json").read_text("utf-8"))["page"]
                print(f"The page of production, live all the time: {page}", flush=True)
                if sys.stdout.isatty():  # by a file: anybody may read a browser's command line
                    opener = folder / "page.html"
                    text = f'<meta http-equiv="refresh" content="0; url={page}">'
                    opener.write_text(text, "utf-8")
                    webbrowser.open(opener.as_uri())
                story = Story(work, github, emulator, began)
                story.train()
                story.review()
                story.deploy()
                story.produce()
                story.retrain()
                story.end()
                story.chapter("The end", "Everything above was made and is removed again.")
                if asked.stay:
                    input("The page stays until you press Enter. ")
        finally:
            emulator.stop()
            azurite.stop()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("demo: stopped; nothing of it is left")
    except AssertionError as failure:
        sys.exit(f"{failure}\ndemo: a step did not end as it should; see above")
