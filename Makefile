# One line a target: the work is in run.py, so that `python run.py TARGET` does the same on Windows.
PYTHON ?= python3

.PHONY: repro test check prove demo lint bench bench-serve bench-monitor bench-workers bench-review bench-photos drift-power rendering-realism noise mlflow notebooks screenshots storage env lock sbom rename help
help:    ; @$(PYTHON) run.py help
repro:   ; @$(PYTHON) run.py repro
test:    ; @$(PYTHON) run.py test
check:   ; @$(PYTHON) run.py check
prove:   ; @$(PYTHON) run.py prove
demo:    ; @$(PYTHON) run.py demo
lint:    ; @$(PYTHON) run.py lint
bench:   ; @$(PYTHON) run.py bench
bench-serve: ; @$(PYTHON) run.py bench-serve
bench-monitor: ; @$(PYTHON) run.py bench-monitor
bench-workers: ; @$(PYTHON) run.py bench-workers
bench-review: ; @$(PYTHON) run.py bench-review
bench-photos: ; @$(PYTHON) run.py bench-photos
drift-power: ; @$(PYTHON) run.py drift-power
rendering-realism: ; @$(PYTHON) run.py rendering-realism $(SCRIPT) $(HANDWRITING)
noise:   ; @$(PYTHON) run.py noise
mlflow:  ; @$(PYTHON) run.py mlflow
notebooks: ; @$(PYTHON) run.py notebooks
screenshots: ; @$(PYTHON) run.py screenshots
storage: ; @$(PYTHON) run.py storage
env:     ; @$(PYTHON) run.py env
lock:    ; @$(PYTHON) run.py lock
sbom:    ; @$(PYTHON) run.py sbom
rename:  ; @$(PYTHON) run.py rename $(NAME)
