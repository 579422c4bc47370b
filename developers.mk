# What developers type: tests, style, measurements, always on the host. The Makefile includes it.
test: .venv/train .venv/dev## run all tests
	.venv/bin/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
lint: .venv/dev## check the style
	.venv/bin/ruff check && .venv/bin/ruff format --check --quiet && .venv/bin/mypy
golden: .venv/dev## rewrite the expected files of tests/cases; review the diff
	GOLDEN=1 .venv/bin/pytest tests/test_cases.py tests/test_linker.py tests/test_members.py
docs:## rewrite docs/targets.md from the comments of the Makefiles
	@{ printf '# Make targets\n\nWritten by `make docs` from the `##` comments of the Makefiles.\n\n| target | |\n|---|---|\n'; \
		sed -n 's/^\([a-z-]*\):.*## \?\(.*\)/| `\1` | \2 |/p' $(MAKEFILE_LIST); } > docs/targets.md
# Pins stay as long as they fit; UPGRADE=--upgrade takes the newest, UPGRADE="--upgrade-package NAME" of one package.
UPGRADE ?=
lock: .venv/base## lock the packages of requirements/*.in anew, with hashes
	for name in uv base train dev; do \
		.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
			--no-emit-find-links --custom-compile-command "make lock" --override requirements/overrides.txt $(UPGRADE) \
			requirements/$$name.in --output-file requirements/$$name.txt; \
	done
bench: bench-history bench-combine## all measurements except bench-replies, which needs DATA
bench-history: .venv/dev## time decrypt and parse on a million rows, against lower bounds
	$(RUN.host) python bench/history.py 1000000 data/bench/history
bench-combine: .venv/train .venv/dev## time combine on ten million messages, against sort and pandas
	$(RUN.host) python bench/combine.py data/bench/combine
bench-replies: .venv/base## accuracy of the pairing: DATA=FOLDER, one with dev.jsonl.gz
	$(RUN.host) python bench/replies.py $(if $(filter undefined,$(origin DATA)),$(error say DATA=<folder with dev.jsonl.gz>),$(DATA))

.PHONY: test lint golden docs lock bench bench-history bench-combine bench-replies
