.PHONY: help setup check run test test-vm faults soak fuzz bench bench-live bench-policies

help:
	@echo 'make setup   set up what is missing'
	@echo 'make check   tell what is there and what is missing; change nothing'
	@echo 'make run     set up, then run the demo'
	@echo 'make test    set up, then run the linters and the tests'
	@echo 'make test-vm set up, then run the tests that need systemd and control groups of version 2, in an emulated machine'
	@echo 'make faults  set up, then inject every fault, simulated (SCHEDULES seeds) and live, and print what held (20 minutes)'
	@echo 'make soak    set up, then run a million simulated ticks, or SOAK_S=3600 one hour live; fails if anything grows'
	@echo 'make fuzz    set up, then look for texts that the parsers of logs and of mcperf fail on (FUZZ_S seconds for each)'
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

test-vm: setup
	tests/vm/run

# SCHEDULES=N: seeds on the simulated machine; SCHEDULE_SEED=N: only that one
SCHEDULES ?= 5000
faults: setup
	SCHEDULES=$(SCHEDULES) tests/faults/run

soak: setup
	.venv/bin/python benchmarks/soak.py $(if $(SOAK_S),--live $(SOAK_S) $(if $(SOAK_RUNTIME),--runtime $(SOAK_RUNTIME)))

# FUZZ_S=SECONDS for each of the two parsers; RUNS=DIR: recorded runs to begin with
FUZZ_S ?= 60
fuzz: setup
	.venv/bin/python -m pip install -q -e '.[dev,fuzz]'
	.venv/bin/python -m tests.fuzz eventlog --seconds $(FUZZ_S) $(if $(RUNS),--corpus $(RUNS))
	.venv/bin/python -m tests.fuzz mcperf --seconds $(FUZZ_S) $(if $(RUNS),--corpus $(RUNS))

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
