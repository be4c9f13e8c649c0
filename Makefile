PYTHON ?= python

.PHONY: demo test check docs

demo:
	$(PYTHON) -m opendetr demo

test:
	$(PYTHON) -m pytest -n 2

check:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest -n 2

# The variable silences a notice about MkDocs 2 that every build would print.
docs:
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict
