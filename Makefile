# make demo   everything once, on the built-in corpus      make test   what CI runs
# make serve  web page and API                             make bench  measurements
# make check  lint, types, layers only
# make base-lstm PAIRS=folder TEACHER=folder [SEED=1]       train the shipped encoder again (also base-transformer)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LMR := $(BIN)/lmr
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
DEMO := checkpoints/demo
# one thread per test process: two processes fill two cores
TEST_PROCESSES ?= 2
SEED ?= 1

.PHONY: demo serve test check bench base-lstm base-transformer clean

demo: $(VENV)/.core
	$(LMR) corpus build python-docs
	$(LMR) embed corpora/python-docs --output indexes/demo
	@for question in "create a temporary directory" "read a json file into a dict" "n largest elements of a list"; do \
	    echo; echo "lmr search \"$$question\" -k 3"; $(LMR) search "$$question" -k 3; done
	@test -f $(DEMO)/.complete || { set -x; rm -rf $(DEMO); \
	    $(LMR) tune corpora/python-docs --max-time 45s --output $(DEMO) && touch $(DEMO)/.complete; }
	$(LMR) evaluate corpora/python-docs --encoder lstm-base --encoder demo --quiet
	@echo
	@echo "Next:"
	@echo "  source $(BIN)/activate                      so that 'lmr' is found"
	@echo "  lmr search \"your own question\"              ask the index that was just built"
	@echo "  make serve                                  the same in a browser, with both shipped models side by side"
	@echo "  lmr embed PATH/TO/YOUR/NOTES                index your own text"
	@echo "  lmr tune PATH/TO/YOUR/NOTES --output checkpoints/notes    teach an encoder your text"
	@echo "  lmr train configs/lstm.toml --corpus TEXT --output checkpoints/mine    a language model of your own"
	@echo "  lmr --help                                  everything else"

# the shipped models and the index built last on http://127.0.0.1:8000, with the web page
serve: $(VENV)/.serve
	$(LMR) serve --open

test: check
	OMP_NUM_THREADS=1 LMR_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal -q

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# the quick form of every table; the full ones are in README, each with its command
bench: $(VENV)/.dev
	@for name in tokenizing encode padding train search serve growth "precision --text README.md" generate; do \
	    set -- $$name; script=$$1; shift; echo; echo "== $$script"; \
	    case $$script in generate) corpus= ;; *) corpus=corpora/python-docs ;; esac; \
	    $(BIN)/python benchmarks/$$script.py --quick "$$@" $$corpus || exit 1; done

# three stages: language model, token vectors, everything; TEACHER is the folder of a sentence-transformers model
base-lstm base-transformer: NEW = $(@:base-%=%)-base-seed-$(SEED)
base-lstm base-transformer: base-%: $(VENV)/.core
	@test -n "$(PAIRS)" && test -n "$(TEACHER)" || { echo "needs PAIRS=folder and TEACHER=folder"; exit 2; }
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt --editable '.[teacher]'
	$(LMR) train configs/$*-base.toml --corpus $(PAIRS) --set training.seed=$(SEED) --output checkpoints/$(NEW)-lm
	$(LMR) tune $(PAIRS) --from $(NEW)-lm --config configs/base-words.toml --teacher $(TEACHER) \
	    --set training.seed=$(SEED) --output checkpoints/$(NEW)-words
	$(LMR) tune $(PAIRS) --from $(NEW)-words --config configs/base-tuning.toml --teacher $(TEACHER) \
	    --set training.seed=$(SEED) --output checkpoints/$(NEW)

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(PIP) --editable .
	@touch $@

$(VENV)/.serve: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(PIP) --editable '.[ui]'
	@touch $@ $(VENV)/.core

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.core

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
