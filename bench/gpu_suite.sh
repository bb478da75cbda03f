#!/usr/bin/env bash
# All that needs a GPU, in one command, without a network and in at most nine minutes:
#
#   bench/gpu_suite.sh [--dry-run] [PART ...]        PART: build tests sanitize kernels e2e trace; default: all
#
# A part that fails or runs out of its time does not stop the others; the exit code is 1 at the end.
# Results, one summary.json (part, status, seconds) and suite.log go to $OUT, or bench/results/.
#   PYTHON         the interpreter (default python3); it has torch, pytest, CMake, ninja, pybind11
#   SUITE_LIMIT    seconds for each part, instead of the script's own
#   SUITE_COMMIT   what was measured, where there is no git
#   SPECBRANCH_CUDA_ARCHITECTURES   default: the device's, e.g. 90-real
# --dry-run (or SUITE_DEVICE=cpu) tries every part that a machine without a GPU can, on small sizes;
# its results, of no meaning, go to $OUT or build/gpu_suite/.
# shellcheck disable=SC2329  # parts are called by name
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

PARTS=(build tests sanitize kernels e2e trace)
declare -A LIMITS=([build]=90 [tests]=90 [sanitize]=90 [kernels]=110 [e2e]=110 [trace]=40)
python=${PYTHON:-python3}
device=${SUITE_DEVICE:-cuda}
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export PATH="$PATH:/usr/local/cuda/bin"  # nvcc and compute-sanitizer, where nobody put them on the path

usage() {
  echo "usage: bench/gpu_suite.sh [--dry-run] [PART ...]    PART: ${PARTS[*]}" >&2
  exit 2
}

on_cuda() { [[ $device != cpu ]]; }

# ------------------------------------------------------------------ the parts
part_build() {
  if on_cuda; then
    local arch=${SPECBRANCH_CUDA_ARCHITECTURES:-$(device_architecture)}
    echo "for $arch"
    SPECBRANCH_CUDA=ON SPECBRANCH_CUDA_ARCHITECTURES=$arch \
      "$python" -m pip install -q -e . --no-build-isolation --no-deps --no-index || return
  fi
  "$python" -m specbranch info
}

device_architecture() {
  "$python" -c 'import torch; print("%d%d-real" % torch.cuda.get_device_capability())' || echo 90-real
}

part_tests() {
  local log
  log=$(mktemp)
  if on_cuda; then
    "$python" -m pytest -q -rs -p no:cacheprovider -m cuda tests | tee "$log"
  else
    "$python" -m pytest -q -p no:cacheprovider tests/ops/test_silu_mul.py -k cpu | tee "$log"
  fi || return
  # pytest is content when everything is skipped.
  grep -q '[1-9][0-9]* passed' "$log" || { echo "no test ran"; return 1; }
}

# Few tests that together run every kernel: under these tools a launch takes a thousand times as long.
part_sanitize() {
  on_cuda || { echo "needs a CUDA device"; return "$SKIPPED"; }
  local every races uninitialised status=0
  every="same_bits or test_chain or long_prefill or strided or one_layer or however_many or bad_rows or grown_tree"
  every+=" or many_rejections or reference or (matches_oracle and torch-bfloat16 and not attention)"
  races="same_bits or long_prefill or strided or however_many or many_rejections or test_chain"
  uninitialised="same_bits or long_prefill or strided or however_many"
  sanitized memcheck "$every" tests/ops || status=1
  sanitized racecheck "$races" tests/ops || status=1
  sanitized initcheck "$uninitialised" tests/ops/test_verify.py tests/ops/test_tree_attention.py || status=1
  return "$status"
}

sanitized() {
  local tool=$1 which=$2 options=(--kernel-name kns=specbranch)
  shift 2
  echo "--- $tool"
  # Errors of the runtime's own probing are none of ours; what torch's kernels write must be seen to count as written.
  [[ $tool == memcheck ]] && options+=(--report-api-errors no)
  [[ $tool == initcheck ]] && options=()
  # Without torch's cache every tensor is an allocation of its own, with an end to run over.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    compute-sanitizer --tool "$tool" "${options[@]}" --target-processes all --error-exitcode 9 \
    "$python" -m pytest -q -p no:cacheprovider -o addopts= -m cuda -k "$which" "$@"
}

part_kernels() {
  local quick=()
  on_cuda || quick=(--quick)
  "$python" bench/kernels.py --device "$device" "${quick[@]}" --seconds $((limit - 25)) \
    --out "$out/kernels.json" || return
  "$python" bench/report.py --print "$out/kernels.json"
}

part_e2e() {
  local prompts=humaneval status=0
  "$python" -c 'from specbranch.prompts import humaneval; humaneval(1)' 2>/dev/null || prompts=bench/prompts.txt
  if ! on_cuda; then
    end_to_end e2e --prompts "$prompts" --n 1 --max-new-tokens 8 --temperatures 0
    return
  fi
  end_to_end e2e --device cuda --prompts "$prompts" --n 8 --max-new-tokens 64 --peers hf hf-assisted || status=1
  end_to_end e2e-7b-68m --device cuda --dtype bfloat16 --inflate 7b 68m --prompts "$prompts" --n 4 \
    --max-new-tokens 64 --temperatures 0 --peers hf hf-assisted || status=1
  return "$status"
}

end_to_end() {
  local name=$1
  shift
  # Half of the time each: a slow first one must not cost the second one. In the foreground, so that the part's own
  # limit ends it, too.
  timeout --foreground --kill-after=5 $((limit / 2)) "$python" bench/e2e.py "$@" --out "$out/$name.json" || return
  "$python" bench/report.py --print "$out/$name.json"
}

part_trace() {
  local dtype=bfloat16
  on_cuda || dtype=float32
  "$python" bench/round_trace.py --device "$device" --dtype "$dtype" --out "$out/trace.json.gz" || return
  cat "$out/trace.summary.json"
}

# ------------------------------------------------------------------ running them
SKIPPED=77

run_part() {
  local part=$1 limit=${SUITE_LIMIT:-${LIMITS[$1]}} started=$SECONDS status
  printf '\n=== %s (at most %s s)\n' "$part" "$limit"
  SUITE_DEVICE=$device OUT=$out timeout --kill-after=10 "$limit" \
    bash "${BASH_SOURCE[0]}" --inside "$part" "$limit" 2>&1 | tee -a "$out/suite.log"
  case ${PIPESTATUS[0]} in
    0) status=ok ;;
    "$SKIPPED") status=skipped ;;
    124 | 137) status=timeout ;;
    *) status=failed ;;
  esac
  results+=("$part:$status:$((SECONDS - started))")
  [[ $status == ok || $status == skipped ]] || failures=1
}

if [[ ${1:-} == --inside ]]; then
  out=$OUT limit=$3
  "part_$2"
  exit
fi

chosen=()
for argument in "$@"; do
  case $argument in
    --dry-run) device=cpu ;;
    build | tests | sanitize | kernels | e2e | trace) chosen+=("$argument") ;;
    *) usage ;;
  esac
done
[[ ${#chosen[@]} -gt 0 ]] || chosen=("${PARTS[@]}")
if on_cuda && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  echo "gpu_suite: no CUDA device, so nothing was run (--dry-run tries the scripts without one)" >&2
  exit 1
fi
if on_cuda; then out=${OUT:-bench/results}; else out=${OUT:-build/gpu_suite}; fi
mkdir -p "$out"
: >"$out/suite.log"

results=() failures=0
for part in "${chosen[@]}"; do run_part "$part"; done
"$python" bench/machine.py "$out/summary.json" "$device" "${results[@]}" || failures=1
printf '\n%-10s %-8s %s\n' part status seconds
for line in "${results[@]}"; do IFS=: read -r -a cells <<<"$line"; printf '%-10s %-8s %s\n' "${cells[@]}"; done
exit $failures
