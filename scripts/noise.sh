#!/usr/bin/env bash
# A dataset of noise, for runs that are not about learning: scripts/noise.sh DIR
# Two classes of 512 images for training and 16 for validation, 32 x 32.
set -euo pipefail
for split in train:512 val:16; do
  for class in a b; do
    folder="$1/${split%:*}/$class"
    mkdir -p "$folder"
    for i in $(seq "${split#*:}"); do
      { printf 'P6 32 32 255\n' && head -c 3072 /dev/urandom; } >"$folder/$i.ppm"
    done
  done
done
