# VENV= (empty) uses PYTHON's own packages and installs nothing; TORCH is what pip is asked for
PYTHON ?= python3
VENV ?= .venv
TORCH ?=
ARGS ?=
OUT ?= build/gpu-report
STEP ?= all
export VENV TORCH
in_environment = $(PYTHON) scripts/environment.py

.DEFAULT_GOAL := help
.PHONY: help bench report test gpu lint clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\): .*## /  make \1 - /p' Makefile

bench: ## write a report of speed, accuracy and training on this machine (ARGS="--help")
	@$(in_environment) report,test -m tritonbn_bench run $(ARGS)

report: ## redraw reports/ from its data, its index, and the table of speed in README.md
	@$(in_environment) report -m tritonbn_bench report --all reports --readme README.md

test: ## run the tests; without a GPU the kernels run in Triton's interpreter (ARGS="-x -k ...")
	@$(in_environment) report,test -m pytest $(ARGS)

gpu: ## on a GPU machine without a network: tests, accuracy, bench, report into OUT (STEP=tests ...)
	@$(PYTHON) scripts/gpu.py --out "$(OUT)" --step "$(STEP)"

lint: ## ruff and mypy
	@$(in_environment) report,test,lint scripts/lint.py

clean: ## remove the virtual environment, caches and build products
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
