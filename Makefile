# Each target sets up what it needs; the environment is kept in .venv.
#   make demo    a small real model on real data: tables and figures in results/demo
#   make test    lint and tests, in minutes
#   make test-all   the long ones too, and all of those below but SLURM's
#   make test-labeller   labelling against real servers and injected faults
#   make test-conda   each script in its own environment of envs/, through Snakemake's conda path
#   make report  one HTML file of a finished run: make report RUN=demo
#   make test-faults   kills, full disks, damaged files, an unreliable Hub: docs/reliability.md
#   make rehearsal   config.yaml as it is on replicas of its sources, no internet: docs/reliability.md
#   make rehearsal-v2   the same with configs/v2.yaml over it
#   make rehearsal-full   Mistral-7B's full size, random weights: 24 GiB of memory, 30 GB of disk
#   make fuzz    10,000 cases for each property of config, replies, words, splits and files
#   make test-slurm      the tiny run on a real SLURM, brought up here (root, Debian)
#   make test-quantised   a model in 8 bits, with torchao in an environment of its own
#   make test-report   the report in a headless browser, the research object in its validator
#   make bench   the measured comparisons, an hour: docs/benchmarks.md
#   make paper   the paper's own run: needs a GPU and the Hub (README, "The paper's run")
#   make docs    docs/choices.md and docs/columns.md out of the schemas

RUN ?= paper
PYTHON ?= $(shell command -v python3.11 || command -v python3)
CORES ?= 2
SNAKEMAKE = .venv/bin/snakemake --cores $(CORES)

.PHONY: demo paper report test test-all test-labeller test-conda test-faults rehearsal rehearsal-v2 rehearsal-full test-slurm test-report test-quantised fuzz bench lint docs env

env: .venv/complete

.venv/complete: requirements.txt requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	.venv/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: env
	$(SNAKEMAKE) --configfile configs/demo.yaml
	@echo "The report: .venv/bin/headpursuit open results/demo (make report RUN=demo puts it into one file)"

paper: env
	$(SNAKEMAKE)

report: env
	$(SNAKEMAKE) --report results/$(RUN)/report.html --configfile results/$(RUN)/config.yaml

lint: env
	.venv/bin/ruff check --quiet .
	.venv/bin/ruff format --quiet --check .
	.venv/bin/snakefmt --check Snakefile rules
	.venv/bin/codespell *.md *.yaml Makefile Snakefile configs docs envs profiles report rules schemas scripts
	.venv/bin/snakemake --lint

test: lint
	.venv/bin/pytest -n $(CORES) -m "not long"

# Everything that can run here. SLURM needs root.
test-all: lint
	.venv/bin/pytest -n $(CORES)
	$(MAKE) test-labeller test-conda test-report test-quantised test-faults rehearsal fuzz

test-labeller: .venv-labeller/complete
	.venv/bin/pytest tests/labeller

.venv-labeller/complete: .venv/complete tests/labeller/requirements.txt tests/labeller/make_servers.sh
	tests/labeller/make_servers.sh .venv .venv-labeller

test-conda: .venv-conda/complete
	.venv/bin/pytest tests/conda

.venv-conda/complete: .venv/complete
	$(PYTHON) -m venv .venv-conda
	.venv-conda/bin/pip install --quiet --disable-pip-version-check $$(grep '^snakemake==' requirements.txt)
	@touch $@

fuzz: env
	FUZZ_CASES=10000 .venv/bin/pytest -n $(CORES) tests/unit/test_fuzz.py

test-faults: env
	.venv/bin/pytest tests/faults

rehearsal: env
	.venv/bin/pytest tests/rehearsal --ignore tests/rehearsal/test_v2.py

rehearsal-v2: env
	.venv/bin/pytest tests/rehearsal/test_v2.py

rehearsal-full: env
	.venv/bin/python tests/rehearsal/full.py results

test-slurm: .venv-cluster/complete
	.venv/bin/python tests/cluster/slurm.py .venv-cluster/bin/python -m pytest -n 5 tests/cluster

# Apart from .venv, whose packages it sees: the SLURM plugin makes every Snakemake ask for a SLURM.
.venv-cluster/complete: .venv/complete requirements-cluster.txt
	.venv/bin/python -m venv --clear .venv-cluster
	.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > $$(.venv-cluster/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/plain.pth
	.venv-cluster/bin/pip install --quiet --disable-pip-version-check -r requirements-cluster.txt
	@touch $@

test-report: .venv-report/complete
	.venv/bin/pytest tests/report

.venv-report/complete: .venv/complete tests/report/requirements.txt tests/report/make_tools.sh
	tests/report/make_tools.sh .venv .venv-report

# Apart from .venv, whose packages it sees: transformers imports torchao wherever it finds it.
test-quantised: .venv-quantised/complete
	.venv-quantised/bin/python -m pytest tests/quantised

.venv-quantised/complete: .venv/complete tests/quantised/requirements.txt
	.venv/bin/python -m venv --clear .venv-quantised
	.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > $$(.venv-quantised/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/plain.pth
	.venv-quantised/bin/pip install --quiet --disable-pip-version-check -r tests/quantised/requirements.txt
	@touch $@

# Of the demo, what the benchmarks read: the model and the activations of table 1's prompts.
bench: .venv-bench/complete
	$(SNAKEMAKE) --configfile configs/demo.yaml -- results/demo/activations/rtp-prompts.parquet
	for part in pursuit model count label_slots report; do .venv-bench/bin/python benchmarks/$$part.py || exit 1; done

.venv-bench/complete: .venv/complete benchmarks/requirements.txt
	.venv/bin/python -m venv --clear .venv-bench
	.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > $$(.venv-bench/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/plain.pth
	.venv-bench/bin/pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	@touch $@

docs: env
	PYTHONPATH=scripts .venv/bin/python -m headpursuit.publish.docs
