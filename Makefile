# Every target makes the virtual environment by itself, once. torch's threads soon sleep while they wait: spinning ones
# slow each other down 5 to 10 times on shared cores (fomo/__init__.py).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY := PASSIVE
export GOMP_SPINCOUNT := 1000
# Progress bars that nobody watches (a log, CI) say something every half minute only.
export TQDM_MININTERVAL := $(shell [ -t 2 ] && echo 0.1 || echo 30)

DATASET ?= fashion_sample
PRESET ?=
MINUTES ?=
METRIC ?=
PLAN ?=
SEED ?= 0
BACKBONE ?=
WEIGHTS ?=
IMAGE_SIZE ?=
ON_BAD ?=
ON_LEAK ?=
ON_RARE ?=
COLUMNS ?=
MODEL ?=
TO ?= onnx
IMAGES ?=

# What a variable holds reaches Python as it is: the shell looks it up in the environment, and reads nothing in it. On the
# command line make itself reads $, which is therefore written $$ there.
VARIABLES := DATASET PRESET MINUTES METRIC PLAN SEED BACKBONE WEIGHTS IMAGE_SIZE ON_BAD ON_LEAK ON_RARE COLUMNS MODEL IMAGES \
	TO PYTHON
export $(VARIABLES)

# A mistyped variable (make report DATSET=flowers) would otherwise be ignored in silence.
UNKNOWN := $(filter-out $(VARIABLES),$(foreach v,$(.VARIABLES),$(if $(filter command line,$(origin $v)),$v)))
UNKNOWN := $(filter-out MAKEFLAGS MAKEOVERRIDES -*-command-variables-*-,$(UNKNOWN))
ifneq ($(strip $(UNKNOWN)),)
$(error unknown variable $(strip $(UNKNOWN)); choose from $(VARIABLES))
endif

.PHONY: help report results inspect predict export networks test page-test bench evidence torture notebooks lab clean

help:  ## this list
	@echo "fomo: finetune, optimise, search"
	@sed -n 's/^\([a-z-]*\):.*##/  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18
	@echo "  variables     DATASET (a name, a folder, an archive, a table), MINUTES, METRIC (macro_f1, accuracy, log_loss), PRESET (auto, quick, report), PLAN, SEED, BACKBONE, WEIGHTS, IMAGE_SIZE, ON_BAD, ON_LEAK, ON_RARE, COLUMNS; MODEL, IMAGES, TO (onnx, torch)"

RUN = --dataset="$$DATASET" --preset="$$PRESET" --minutes="$$MINUTES" --metric="$$METRIC" --plan="$$PLAN" --seed="$$SEED" \
	--backbone="$$BACKBONE" --weights="$$WEIGHTS" --image-size="$$IMAGE_SIZE" --on-bad="$$ON_BAD" --on-leak="$$ON_LEAK" \
	--on-rare="$$ON_RARE" --columns="$$COLUMNS"

report: $(VENV)/installed  ## the whole pipeline: figures, tables, a model; make report DATASET=path/to/folder MINUTES=20
	@$(BIN)/python -m fomo report $(RUN)

results: $(VENV)/installed  ## keeps what a finished report found in data/results; prints the table beside the published one
	@$(BIN)/python -m fomo results $(RUN)

test: $(VENV)/installed  ## style, unit tests, and all notebooks against their stored outputs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile
	$(BIN)/python -m pytest --nbval --nbval-cell-timeout=1200 -p no:cacheprovider notebooks

page-test: $(VENV)/installed  ## the pages of all runs in a real browser: needs Chromium (apt-get install chromium)
	@$(BIN)/python tests/browser.py

inspect: $(VENV)/installed  ## what is in a data set, and what is wrong with it; make inspect DATASET=path/to/folder
	@$(BIN)/python -m fomo inspect --columns="$$COLUMNS" --on-rare="$$ON_RARE" -- "$$DATASET"

# The words of IMAGES reach Python one by one, patterns as they are.
predict: $(VENV)/installed  ## what a model says of images, as csv; make predict MODEL=model.safetensors IMAGES="photos boot.png"
	@set -f; $(BIN)/python -m fomo predict -- "$$MODEL" $$IMAGES

export: $(VENV)/installed  ## a model in one file that needs no fomo; make export MODEL=path/to/model.safetensors TO=onnx
	@$(BIN)/python -m fomo export --to="$$TO" --images="$$IMAGES" -- "$$MODEL"

networks: $(VENV)/installed  ## downloads three networks that plans then try, too; once, with the internet
	@$(BIN)/python -m fomo networks

bench: $(VENV)/installed  ## what each way saves, beside doing without: minutes
	@$(BIN)/python -m fomo bench --dataset="$$DATASET"

evidence: $(VENV)/installed  ## what the searches are worth, with many seeds: hours, unless data/results has it
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[evidence]"
	@$(BIN)/python -m fomo evidence

torture: $(VENV)/installed  ## runs killed and left without room at random moments, and what comes of them: root, half an hour
	@$(BIN)/python -m fomo torture

notebooks: $(VENV)/installed  ## executes the notebooks in place and renews README's pictures; both are committed
	FOMO_FIGURES= TQDM_DISABLE=1 $(BIN)/jupyter nbconvert --to notebook --execute --inplace \
		--ExecutePreprocessor.record_timing=False \
		--ExecutePreprocessor.extra_arguments=--log-level=ERROR --log-level=ERROR notebooks/0*.ipynb
	cp $(addprefix figures/fashion_sample/,overview.png fig1_bo_losses.png fig2_alphas.png fig3_accuracies.png) figures/readme

lab: $(VENV)/installed  ## JupyterLab, to step through the notebooks
	$(BIN)/jupyter lab notebooks

clean:  ## removes runs and the virtual environment
	rm -rf $(VENV) data/runs data/fashion_sample *.egg-info

$(VENV)/installed: requirements.txt pyproject.toml
	@echo "setting up $(VENV), once; this takes some minutes ..."
	@"$$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fomo needs Python 3.11 or later; make PYTHON=python3.11")'
	@"$$PYTHON" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt > $(VENV)/pip.log 2>&1 \
		|| { tail -n 20 $(VENV)/pip.log; exit 1; }
	@touch $@
