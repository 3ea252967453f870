# `make` lists what there is. Everything lives in .venv and in the state directory; nothing outside changes.
.DEFAULT_GOAL := help
.PHONY: help install up demo test kafka faults check clean
BIN := .venv/bin
STATE := $(or $(APPRENTICE_STATE),.apprentice)

help:  ## list these targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name what; do \
		printf '  make %-9s %s\n' "$$name" "$$what"; done

install:  ## make .venv and install into it (a GPU build where nvidia-smi works)
	@./deploy/install.sh

up: install  ## install, fetch the built-in model, start the server and the learner; Ctrl-C stops them
	@exec $(BIN)/apprentice up

demo: install  ## teach eight facts to the server that `make up` runs, and show before and after
	@exec $(BIN)/apprentice demo

test:  ## install with the tests' tools and run all tests
	@./deploy/install.sh test
	$(BIN)/python -m pytest -n 3 --no-loadscope-reorder $(ARGS)

kafka:  ## fetch a broker's jars with Maven into .kafka, for the tests (Java 17), unless there is a broker
	@if [ -n "$(KAFKA_HOME)$(KAFKA_BOOTSTRAP_SERVERS)" ]; then echo "There is a broker: nothing to fetch."; else \
		mvn -B -q -f deploy/kafka/pom.xml dependency:copy-dependencies -DincludeScope=runtime \
			-DoutputDirectory="$(CURDIR)/.kafka/libs" && echo "The tests find the broker in .kafka."; fi

faults:  ## kill, starve and cut off everything for about half an hour, and count what was lost (a broker: make kafka)
	@./deploy/install.sh test
	$(BIN)/python -m pytest -m long $(ARGS)
	$(BIN)/python -m tests.faults

check:  ## lint, formatting, types
	@./deploy/install.sh test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## delete .venv, .kafka, caches and all state: policies, journal, logs (asks first; YES=1 does not)
	@echo "This deletes, without a way back:"
	@for one in .venv $(STATE) .kafka .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info; do \
		[ ! -e "$$one" ] || printf '  %-16s %s\n' "$$(du -sh "$$one" | cut -f1)" "$$one"; done
	@if [ -z "$(YES)" ]; then printf 'Go on? [y/N] '; read -r answer; [ "$$answer" = y ] || { echo "Nothing deleted."; exit 1; }; fi
	rm -rf .venv $(STATE) .kafka .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find buffer server learner tests -name __pycache__ -type d -prune -exec rm -rf {} +
