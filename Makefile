PYTHON ?= python

.PHONY: demo test check

demo:
	$(PYTHON) -m opendetr demo

test:
	$(PYTHON) -m pytest

check:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest
