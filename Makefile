.PHONY: help setup check run test bench bench-live bench-policies

help:
	@echo 'make setup   set up what is missing'
	@echo 'make check   tell what is there and what is missing; change nothing'
	@echo 'make run     set up, then run the demo'
	@echo 'make test    set up, then run the linters and the tests'
	@echo 'make bench   set up, then measure what the controller costs, how fast it acts and how true the model is'
	@echo 'make bench-live      set up, then compare policies on this machine, a quiet one with two cores (13 minutes)'
	@echo 'make bench-policies  set up, then compare all policies on the simulated machines (half an hour)'

setup:
	scripts/setup_scheduler.sh

check:
	scripts/setup_scheduler.sh --check

run:
	scripts/setup_scheduler.sh demo

test:
	scripts/setup_scheduler.sh test

# RUNS=DIR: recorded runs to check the model against; CALIBRATION=DIR: their groups' own scans
bench: setup
	.venv/bin/python benchmarks/import_time.py
	.venv/bin/python benchmarks/bench.py
	.venv/bin/python benchmarks/sim_speed.py
	.venv/bin/python benchmarks/validate_model.py $(if $(RUNS),--runs $(RUNS)) $(if $(CALIBRATION),--calibration $(CALIBRATION))

bench-live: setup
	.venv/bin/python benchmarks/live.py

bench-policies: setup
	.venv/bin/python benchmarks/policies.py
	$(if $(RUNS),.venv/bin/python benchmarks/peers.py --runs $(RUNS))
