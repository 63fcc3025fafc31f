#!/usr/bin/env bash
# Data parallel training under a real MPI: scripts/mpi_tests.sh
# Needs mpirun, MPI's headers and libclang (Debian: openmpi-bin libopenmpi-dev libclang-dev).
set -euo pipefail
cd "$(dirname "$0")/.."
# What mpirun asks of root; one thread a rank, so that three ranks fit anywhere.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 RAYON_NUM_THREADS=1
# Of the whole workspace, as the tests are: other features would build candle a second time.
build=(--workspace --locked --features vitfreeze-examples/mpi,vitfreeze-cli/mpi)
cargo build "${build[@]}" --example data_parallel --example pretrain_imagenet --example finetune_imagenet
# The program: it starts mpirun itself.
cargo test "${build[@]}" --test workers -- --test-threads 1
for np in 1 3; do
  cargo test "${build[@]}" --test mpi --config "target.'cfg(all())'.runner = ['mpirun', '-np', '$np', '--oversubscribe']"
done
program="${CARGO_TARGET_DIR:-target}/debug/examples/data_parallel"
out="$(mktemp -d)"

fail() {
  echo "mpi_tests: $*" >&2
  exit 1
}

# ranks NP FILE: trains on NP ranks.
ranks() {
  timeout 300 mpirun -np "$1" --oversubscribe "$program" 30 60 >"$2" || fail "mpirun -np $1 failed"
}

for np in 1 2 3; do
  ranks "$np" "$out/$np"
  ranks "$np" "$out/again"
  cmp <(sort "$out/$np") <(sort "$out/again") || fail "-np $np: other bits at the second run"
  [[ "$(grep -c '^step' "$out/$np")" == 30 ]] || fail "-np $np: not 30 steps"
  [[ "$(grep -c 'weights' "$out/$np")" == "$np" ]] || fail "-np $np: not $np ranks"
  [[ "$(grep -o 'weights.*' "$out/$np" | sort -u | wc -l)" == 1 ]] || fail "-np $np: ranks end with different weights"
  # Loss as with one process; 5 layers of 64 * 64 + 64 parameters, and a frozen one sends nothing.
  paste -d ' ' <(grep '^step' "$out/1") <(grep '^step' "$out/$np") | awk -v np="$np" '
    { difference = $12 - $4; if (difference < 0) difference = -difference }
    difference > 1e-6 * $4 { print "step " $2 ": loss " $12 ", not " $4; bad = 1 }
    $16 != (np == 1 ? 0 : 4 * (5 - $14) * 4160) { print "step " $2 ": " $16 " bytes with " $14 " frozen"; bad = 1 }
    $14 > most { most = $14 }
    difference / $4 > worst { worst = difference / $4 }
    END { print "-np " np ": losses within " worst + 0 ", up to " most " frozen"; exit bad || most < 3 }
  ' || fail "-np $np: losses or bytes are wrong"
done

# The reference runs on two ranks, of which one speaks; on noise, for it is not about learning.
scripts/noise.sh "$out/noise"
examples="$(dirname "$program")"
two=(mpirun -np 2 --oversubscribe)
"${two[@]}" "$examples/pretrain_imagenet" "$out/noise" "$out/library" --tiny >"$out/said"
[[ "$(grep -c '^epoch' "$out/said")" == 2 ]] || fail "not 2 epochs: $(cat "$out/said")"
"${two[@]}" "$examples/finetune_imagenet" "$out/library/encoder.safetensors" "$out/noise" "$out/tuned" --tiny >"$out/said"
[[ "$(grep -c 'top-1' "$out/said")" == 1 ]] || fail "not one epoch: $(cat "$out/said")"

# endless SIGNAL: a long run whose last rank gets the signal; how it ends is in $out/endless and $code.
endless() {
  timeout 120 mpirun -np 2 --oversubscribe "$program" 100000000 5 >"$out/steps" 2>"$out/endless" &
  local job=$! workers worker
  for _ in $(seq 300); do
    [[ -s "$out/steps" ]] && break
    sleep 0.1
  done
  [[ -s "$out/steps" ]] || fail "the long run did not begin: $(cat "$out/endless")"
  workers="$(pgrep -P "$(pgrep -P "$job")")"
  worker="$(tail -n 1 <<<"$workers")"
  SECONDS=0
  kill "-$1" "$worker"
  code=0
  wait "$job" || code=$?
  [[ "$code" != 0 && "$code" != 124 ]] || fail "$1 of a worker: exit code $code"
  for worker in $workers; do # mpirun does not wait for the last one
    while kill -0 "$worker" 2>/dev/null && ((SECONDS <= 30)); do
      sleep 0.1
    done
  done
  ((SECONDS <= 30)) || fail "$1 of a worker: the job went on for $SECONDS s"
  echo "$1 of a worker: the job ended after $SECONDS s with code $code"
}
endless KILL
endless STOP
grep -q 'nobody answered an all-reduce for 5 s' "$out/endless" || fail "no message: $(cat "$out/endless")"
rm -r "$out"
