# Everything a developer does, each as one command. `make test` needs Python 3.10 to 3.13,
# g++ and a package index, and nothing else: it makes its own virtual environment.
#
#   make test PYTHON=python3.12 VENV=.venv312     another Python, another environment
#   make test TERRA_TF_PACKAGE=tensorflow     the CUDA build of TensorFlow
#   make native-test TERRA_SANITIZE=thread        C++ unit tests under ThreadSanitizer

PYTHON ?= $(firstword $(shell command -v python3.11 || command -v python3) python3)
VENV ?= .venv
# A warning of the compiler stops the builds of this file; TERRA_STRICT=0 lets it pass.
TERRA_STRICT ?= 1
# Half a gigabyte less to download than `tensorflow`, and the same on a CPU.
TERRA_TF_PACKAGE ?= tensorflow-cpu
CONFORMANCE ?= $(firstword $(wildcard tests/conformance conformance ../shared/conformance))
BENCH_ARGS ?=
FUZZ_FIRST ?= 0
FUZZ_COUNT ?= 1500
FUZZ_KERAS_COUNT ?= 500
FUZZ_LOOPS_COUNT ?= 500
FUZZ_ALIASING_COUNT ?= 500
FUZZ_STRUCTURE_COUNT ?= 500
FUZZ_FUNCTIONS_COUNT ?= 500
FUZZ_SHAPES_COUNT ?= 500
FUZZ_GRADIENTS_COUNT ?= 500
FUZZ_INTERRUPTS_COUNT ?= 500
FUZZ_ARGS ?=
PYTEST_ARGS ?=
# Processes that share the Python tests of `make test`; one that is done takes over half of what
# the other has left.
PYTEST_JOBS ?= 2

export TERRA_TF_PACKAGE
export TERRA_STRICT
export PIP_DISABLE_PIP_VERSION_CHECK = 1
PY := $(VENV)/bin/python

.PHONY: help setup build test test-fast test-slow test-ecosystem fuzz lint bench bench-micro demo format native-test \
        native-binaries sanitize sanitize-python coverage native-coverage wheel wheel-test bazel \
        mutations conformance clean distclean
.DEFAULT_GOAL := help

help:
	@echo "make setup | build | test | test-fast | test-slow | test-ecosystem | fuzz | native-test |"
	@echo "     sanitize | sanitize-python | coverage | lint | format | bench | bench-micro | demo | conformance |"
	@echo "     wheel | wheel-test | bazel | mutations | clean | distclean"

# ---- Environment: made anew only when the packaging changes -----------------------------
setup: $(VENV)/.installed

$(VENV)/.installed: setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || { \
	  echo "$(PYTHON) is no Python 3.10 to 3.13, which TensorFlow 2.21 needs;" \
	       "try: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@command -v $(firstword $(CXX)) >/dev/null || { \
	  echo "the C++ compiler $(CXX) was not found; try: apt-get install g++" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -qq "setuptools>=70.1" wheel "pybind11>=2.12" "$(TERRA_TF_PACKAGE)>=2.21,<2.22"
	$(PY) -m pip install -qq --no-build-isolation -e ".[test]"
	@# Without what it depends on: that would be another TensorFlow.
	$(PY) -m pip install -qq --no-deps "tf_keras>=2.21,<2.22"
	@touch $@

# Always run: it looks at every source itself, and does nothing in half a second.
build: $(VENV)/.installed
	@$(PY) setup.py -q build_ext --inplace

# ---- Tests: pytest comes last, so that its summary ends the output ----------------------
test: build
	@$(MAKE) --no-print-directory native-test
	$(PY) -m pytest tests/coexec -q -m "timed and not slow" $(PYTEST_ARGS)
	$(PY) -m pytest tests -q -m "not slow and not timed" -n $(PYTEST_JOBS) --dist worksteal \
	  $(PYTEST_ARGS)

test-fast: build
	$(PY) -m pytest tests -m "not slow" -x -q $(PYTEST_ARGS)

# Every fault at every op, every conformance case: hours on a small machine.
test-slow: build
	$(PY) -m pytest tests -q -m slow $(PYTEST_ARGS)

# Programs of third-party libraries. Without what those depend on: that would be another TensorFlow.
ECOSYSTEM := build/ecosystem
ECOSYSTEM_PACKAGES := "tensorflow-probability>=0.25" "dm-sonnet>=2" "gpflow>=2.11" attrs cloudpickle \
                      check-shapes decorator deprecated dm-tree dropstackframe lark multipledispatch \
                      tabulate

$(ECOSYSTEM)/.installed: Makefile
	@rm -rf $(ECOSYSTEM)
	$(PY) -m pip install -qq --no-deps --target $(ECOSYSTEM) $(ECOSYSTEM_PACKAGES)
	@touch $@

test-ecosystem: build $(ECOSYSTEM)/.installed
	PYTHONPATH=$(ECOSYSTEM) TERRA_ECOSYSTEM=1 $(PY) -m pytest tests/ecosystem -q $(PYTEST_ARGS)
	PYTHONPATH=$(ECOSYSTEM) $(PY) -m tests.ecosystem

# Random programs, eager and under Terra: a second each, with Keras two and more.
fuzz: build
	$(PY) -m tests.fuzz --first=$(FUZZ_FIRST) --count=$(FUZZ_COUNT) $(FUZZ_ARGS)
	$(PY) -m tests.fuzz --profile=keras --first=$(FUZZ_FIRST) --count=$(FUZZ_KERAS_COUNT) $(FUZZ_ARGS)
	$(PY) -m tests.fuzz --profile=loops --first=$(FUZZ_FIRST) --count=$(FUZZ_LOOPS_COUNT) $(FUZZ_ARGS)
	$(PY) -m tests.fuzz --profile=aliasing --first=$(FUZZ_FIRST) --count=$(FUZZ_ALIASING_COUNT) \
	  $(FUZZ_ARGS)
	$(PY) -m tests.fuzz --profile=structure --first=$(FUZZ_FIRST) --count=$(FUZZ_STRUCTURE_COUNT) \
	  $(FUZZ_ARGS)
	$(PY) -m tests.fuzz --profile=functions --first=$(FUZZ_FIRST) --count=$(FUZZ_FUNCTIONS_COUNT) \
	  $(FUZZ_ARGS)
	$(PY) -m tests.fuzz --profile=shapes --first=$(FUZZ_FIRST) --count=$(FUZZ_SHAPES_COUNT) $(FUZZ_ARGS)
	$(PY) -m tests.fuzz --profile=gradients --first=$(FUZZ_FIRST) --count=$(FUZZ_GRADIENTS_COUNT) \
	  $(FUZZ_ARGS)
	$(PY) -m tests.fuzz --profile=interrupts --first=$(FUZZ_FIRST) --count=$(FUZZ_INTERRUPTS_COUNT) \
	  $(FUZZ_ARGS)

conformance: build
	@test -n "$(CONFORMANCE)" || { echo "no conformance cases found;" \
	  "try: make conformance CONFORMANCE=/path/to/them" >&2; exit 1; }
	$(PY) $(CONFORMANCE)/run.py --modes eager --wrap terra_tf:function

# ---- C++ unit tests: kernels/core knows neither Python nor TensorFlow -------------------
NATIVE_DIR := build/native-test$(addprefix -,$(TERRA_SANITIZE))
NATIVE_FLAGS := -std=c++17 -O1 -g -Wall -Wextra -Werror -pthread -I. \
                $(addprefix -fsanitize=,$(TERRA_SANITIZE)) $(NATIVE_COVERAGE)
# ThreadSanitizer cannot map its shadow memory where the kernel randomizes addresses widely.
NATIVE_RUN := $(if $(filter thread,$(TERRA_SANITIZE)),setarch -R) timeout 60
CORE_TESTS := $(wildcard kernels/core/*_test.cc)
CORE_SOURCES := $(filter-out $(CORE_TESTS),$(wildcard kernels/core/*.cc))
CORE_OBJECTS := $(CORE_SOURCES:%.cc=$(NATIVE_DIR)/%.o)
NATIVE_BINARIES := $(CORE_TESTS:%.cc=$(NATIVE_DIR)/%)

native-test:
	@$(MAKE) --no-print-directory -s -j2 native-binaries
	@for program in $(NATIVE_BINARIES); do \
	  echo "$$program"; $(NATIVE_RUN) ./$$program || { echo "FAILED: $$program"; exit 1; }; \
	done

native-binaries: $(NATIVE_BINARIES)

$(NATIVE_DIR)/%.o: %.cc
	@mkdir -p $(@D)
	$(CXX) $(NATIVE_FLAGS) -MMD -MP -c $< -o $@

$(NATIVE_DIR)/%_test: $(NATIVE_DIR)/%_test.o $(CORE_OBJECTS)
	$(CXX) $(NATIVE_FLAGS) $^ -o $@

# The core without TensorFlow, which is not built for sanitizers.
sanitize:
	@for sanitizer in thread address undefined; do \
	  echo "== $$sanitizer"; \
	  UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	    $(MAKE) --no-print-directory native-test TERRA_SANITIZE=$$sanitizer || exit 1; \
	done

# Python tests, with this package's library instrumented and TensorFlow as it is. libstdc++ is
# loaded early as well: AddressSanitizer looks for the real `__cxa_throw` when it starts.
SANITIZED := build/sanitized
SANITIZED_TESTS ?= $(patsubst %,tests/coexec/test_%.py,hazards_tensors hazards_variables \
  hazards_errors hazards_python pinning call_replay replayed_objects bad_input \
  function_objects straight_programs switch_cases)
SANITIZED_LIBRARIES = $(foreach name,asan stdc++,$(shell $(CXX) -print-file-name=lib$(name).so))

sanitize-python: $(VENV)/.installed
	rm -rf $(SANITIZED)
	TERRA_SANITIZE=address $(PY) setup.py -q build --build-lib $(SANITIZED)
	LD_PRELOAD="$(SANITIZED_LIBRARIES)" PYTHONMALLOC=malloc \
	  ASAN_OPTIONS=detect_leaks=0:handle_segv=2:log_path=$(CURDIR)/$(SANITIZED)/report \
	  $(PY) -m pytest $(SANITIZED_TESTS) -q -m "not slow and not timed" --timeout=600 \
	  -o pythonpath="$(SANITIZED) . tests/coexec tests/keras" $(PYTEST_ARGS) || \
	  { tail -n +1 $(SANITIZED)/report*; exit 1; }

# ---- Bazel: the same C++, by Debian's bazel-bootstrap and bazel-rules-java, without a network
BAZEL ?= bazel
BAZEL_RULES_JAVA ?= /usr/share/bazel/rules/java
BAZEL_ROOT := build/bazel

bazel: $(VENV)/.installed
	@command -v $(BAZEL) >/dev/null || { echo "bazel was not found;" \
	  "try: apt-get install bazel-bootstrap bazel-rules-java" >&2; exit 1; }
	@mkdir -p $(BAZEL_ROOT)
	PYTHON_BIN_PATH=$(abspath $(PY)) $(BAZEL) --output_user_root=$(abspath $(BAZEL_ROOT)) \
	  test //kernels:all --jobs=2 -c opt --spawn_strategy=local --noshow_progress \
	  --build_tests_only=false --test_output=errors --symlink_prefix=$(BAZEL_ROOT)/ \
	  --override_repository=rules_java=$(BAZEL_RULES_JAVA)
	$(BAZEL) --output_user_root=$(abspath $(BAZEL_ROOT)) shutdown
	@ls -lL $(BAZEL_ROOT)/bin/kernels/_terra_native.so

# ---- Coverage: of the package by the tests that are not slow, of the core by its own ------
COVERAGE_TESTS ?= tests
COVERAGE_DIR := build/native-coverage

coverage: build $(VENV)/.coverage-installed
	$(PY) -m pytest $(COVERAGE_TESTS) -q -m "not slow and not timed" -n $(PYTEST_JOBS) \
	  --dist worksteal --cov=terra_tf --cov-branch --cov-report=term-missing:skip-covered \
	  $(PYTEST_ARGS)
	@$(MAKE) --no-print-directory native-coverage

native-coverage: $(VENV)/.coverage-installed
	rm -rf $(COVERAGE_DIR)
	@$(MAKE) --no-print-directory native-test NATIVE_DIR=$(COVERAGE_DIR) \
	  NATIVE_COVERAGE="--coverage -O0"
	$(VENV)/bin/gcovr --root . --filter kernels/core/ --exclude '.*(_test\.cc|check\.h)' \
	  --merge-lines $(COVERAGE_DIR)

$(VENV)/.coverage-installed: $(VENV)/.installed
	$(PY) -m pip install -qq pytest-cov gcovr
	@touch $@

.SECONDARY:
-include $(CORE_OBJECTS:.o=.d) $(NATIVE_BINARIES:=.d)

# ---- Everything else -------------------------------------------------------------------
$(VENV)/.lint-installed: $(VENV)/.installed
	$(PY) -m pip install -qq ruff mypy "clang-format>=23,<24"
	@touch $@

# Python's rules, types, C++'s layout, and C++ without a warning (`build` and the core's tests).
FORMATTED := $(wildcard kernels/*.h kernels/*.cc kernels/*/*.h kernels/*/*.cc)

# Every broken rule must make a test fail: docs/mutations.md.
mutations: build
	$(PY) -m tests.mutations

lint: $(VENV)/.lint-installed build
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(FORMATTED)
	@$(MAKE) --no-print-directory -s -j2 native-binaries

# Lays out what `lint` checks.
format: $(VENV)/.lint-installed
	$(VENV)/bin/clang-format -i $(FORMATTED)

bench: build
	$(PY) -m benchmarks $(BENCH_ARGS)

bench-micro: build
	$(PY) -m benchmarks.micro $(BENCH_ARGS)

demo: build
	$(PY) -m benchmarks.demo

# From an empty build/lib: setuptools would put modules that are gone into the wheel.
wheel: $(VENV)/.installed
	rm -rf build/lib* build/bdist*
	$(PY) -m pip wheel -qq --no-build-isolation --no-deps -w dist .
	@ls -l dist/*.whl

# In a fresh environment, away from the source tree: what a user gets.
wheel-test: wheel
	rm -rf build/wheel-test
	$(PYTHON) -m venv build/wheel-test
	build/wheel-test/bin/python -m pip install -qq "$$(ls -t dist/*.whl | head -n 1)"
	cd build/wheel-test && bin/python -I -W error::DeprecationWarning:terra_tf \
	  $(CURDIR)/tests/packaging/wheel_smoke.py

clean:
	@chmod -R u+w build 2>/dev/null || true  # Bazel writes its outputs read-only
	rm -rf build dist *.egg-info terra_tf/_terra_native.so terra_tf/_build_info.py \
	  .pytest_cache .mypy_cache .ruff_cache .hypothesis

distclean: clean
	rm -rf $(VENV)
