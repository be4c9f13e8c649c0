PYTHON ?= python

.PHONY: demo test check docs

demo:
	$(PYTHON) -m opendetr demo

test:
	$(PYTHON) -m pytest

check:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest

# The variable silences a note about another program's future, which is printed at every build.
docs:
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict
