# What developers type: tests, style, measurements, always on the host. The Makefile includes it.
test: .venv/train .venv/dev## all tests
	.venv/bin/pytest
lint: .venv/dev## style
	.venv/bin/ruff check
golden: .venv/dev## write the expected files of tests/cases anew; the diff is the review
	GOLDEN=1 .venv/bin/pytest tests/test_cases.py tests/test_linker.py
bench: bench-history bench-combine## all measurements but bench-replies, which needs DATA
bench-history: .venv/dev## decrypt and parse a million rows, beside the least that could be done
	$(RUN.host) python bench/history.py 1000000 data/bench/history
bench-combine: .venv/train .venv/dev## combine at ten million messages, beside one sort and a plain pandas version
	$(RUN.host) python bench/combine.py data/bench/combine
bench-replies: .venv/base## how often the turn that pairing names is right: DATA=<folder with dev.jsonl.gz>
	$(RUN.host) python bench/replies.py $(if $(filter undefined,$(origin DATA)),$(error say DATA=<folder with dev.jsonl.gz>),$(DATA))

.PHONY: test lint golden bench bench-history bench-combine bench-replies
