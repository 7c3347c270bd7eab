# Two commands do all there is to set up: `make demo` and `make test`. Both make .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE := 1

.PHONY: demo test test-random release-checks lint browser dcm2niix docs checkpoints open-checkpoint cards clean

demo: .venv/installed
	$(BIN)/radfm demo

# Three workers for two cores, since tests often wait for a process that they started.
test: lint browser dcm2niix
	$(BIN)/python -m pytest -n 3 --dist worksteal

# All tests in another order each time; it prints the seed, and SEED= repeats one.
test-random: .venv/installed browser dcm2niix
	$(BIN)/python -m pytest -n 3 --dist worksteal -p randomly $(addprefix --randomly-seed=,$(SEED))

# The tests as they are, as on another processor, on a busy machine, and in two random orders: see CONTRIBUTING.md.
release-checks: lint browser dcm2niix
	$(BIN)/python -m tests.release_checks

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/types && mkdir -p build/types/radfm
	cd build/types/radfm && ln -s ../../../radfm/* $(addprefix ../../../,data_prep eval train serve model_cards) .
	$(BIN)/python -m mypy

# The pages are tested in Chromium: installed where that can be done, else those tests say that they were skipped.
browser:
	@command -v chromedriver > /dev/null || ! command -v apt-get > /dev/null || [ "$$(id -u)" != 0 ] || { \
		echo "Installing Chromium and its driver, for the tests of the pages" >&2; \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver; \
	} > /dev/null || echo "No Chromium: tests of the pages are skipped"

# What radfm reads is compared with what dcm2niix reads, in the same way.
dcm2niix:
	@command -v dcm2niix > /dev/null || ! command -v apt-get > /dev/null || [ "$$(id -u)" != 0 ] || { \
		echo "Installing dcm2niix, with which the tests compare the reading of DICOM" >&2; \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends dcm2niix; \
	} > /dev/null || echo "No dcm2niix: the test that compares with it is skipped"

docs: .venv/installed
	$(BIN)/python docs/api.py build/api
	@echo "Open build/api/index.html"

# What comes with radfm in radfm/checkpoints/, anew: some three hours on two cores. Needs the Disease Ontology as OBO.
ONTOLOGY ?= disease_ontology.obo
TEXT := checkpoints/radfm-text-mini
MODEL := checkpoints/radfm-phantom-mini
PHANTOMS := datasets/phantoms
checkpoints: .venv/installed
	$(BIN)/radfm train text train/configs/text.yaml "data.ontologies=[$(ONTOLOGY)]" data.held_out=4 output=runs/text_mini
	$(BIN)/python -m radfm.checkpoints.make halve runs/text_mini $(TEXT)
	$(BIN)/radfm prepare phantoms $(PHANTOMS) --cases 6000
	$(BIN)/radfm train diagnosis train/configs/diagnosis_tower.yaml model.text_encoder=$(TEXT)
	$(BIN)/radfm train diagnosis train/configs/diagnosis_ke.yaml model.text_encoder=$(TEXT)
	$(BIN)/python -m radfm.checkpoints.make halve runs/diagnosis_ke $(MODEL)
	$(BIN)/radfm calibrate $(PHANTOMS) --model $(MODEL)
	$(BIN)/radfm check $(MODEL) --write
	$(BIN)/python -m radfm.checkpoints.make install $(TEXT) $(MODEL)
	@mkdir -p evaluation
	$(BIN)/radfm evaluate text radfm-text-mini --ontology $(ONTOLOGY) --json > evaluation/text.json
	$(BIN)/radfm evaluate $(PHANTOMS) --model radfm-phantom-mini --out evaluation/phantom_mini
	$(BIN)/radfm evaluate $(PHANTOMS) --model radfm-phantom-mini --within "body part" --out evaluation/phantom_mini_within

# The model that has seen patients, anew: less than two hours on two cores. OPEN: a manifest of openly licensed cases.
OPEN ?= cases.csv
CASES := datasets/open
OPEN_MODEL := checkpoints/radfm-open-mini
open-checkpoint: .venv/installed
	$(BIN)/radfm prepare manifest $(OPEN) $(CASES)
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node 2 -m radfm.train.diagnosis train/configs/open_mini.yaml data=$(CASES)
	$(BIN)/python -m radfm.checkpoints.make halve runs/open_mini $(OPEN_MODEL)
	$(BIN)/radfm calibrate $(CASES) --model $(OPEN_MODEL)
	$(BIN)/radfm check $(OPEN_MODEL) --write
	$(BIN)/python -m radfm.checkpoints.make install radfm-text-mini $(OPEN_MODEL)
	$(BIN)/radfm evaluate $(CASES) --split validation --within collection --min-cases 3 --model radfm-open-mini \
		--out evaluation/open_mini

# The cards of all, from these evaluations, and what they rest on, beside the weights: who publishes them again has both.
cards: .venv/installed
	rm -rf build/cards
	$(BIN)/radfm publish radfm-text-mini radfm-text-mini --license apache-2.0 --evaluation evaluation/text.json \
		--notes model_cards/notes/radfm-text-mini.md --dry-run --out build/cards/radfm-text-mini
	$(BIN)/radfm publish radfm-phantom-mini radfm-phantom-mini --license apache-2.0 --evaluation evaluation/phantom_mini \
		--evaluation evaluation/phantom_mini_within --notes model_cards/notes/radfm-phantom-mini.md \
		--dry-run --out build/cards/radfm-phantom-mini
	$(BIN)/radfm publish radfm-open-mini radfm-open-mini --license cc-by-sa-4.0 --evaluation evaluation/open_mini \
		--notes model_cards/notes/radfm-open-mini.md --dry-run --out build/cards/radfm-open-mini
	for name in radfm-text-mini radfm-phantom-mini radfm-open-mini; do \
		cp build/cards/$$name/README.md model_cards/$$name.md; \
		cp build/cards/$$name/evaluation.json build/cards/$$name/radfm_card.json radfm/checkpoints/$$name/; \
	done

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "radfm needs Python 3.11 or later: make PYTHON=python3.12 ...")'
	@echo "Installing radfm and what it needs into .venv: some minutes, once, about 7 GB (10 while it installs)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info runs
