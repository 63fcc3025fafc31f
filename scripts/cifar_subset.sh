#!/usr/bin/env bash
# Links the first so many images of each class of CIFAR-10 into a folder with train/ and val/:
#
#   bash scripts/cifar_subset.sh CIFAR OUT [TRAIN [VAL]]
#
# CIFAR holds train/<class>/ and test/<class>/. TRAIN is 400 a class unless told otherwise, VAL 200.
set -euo pipefail

cifar=$(realpath "${1:?usage: cifar_subset.sh CIFAR OUT [TRAIN [VAL]]}")
out=${2:?usage: cifar_subset.sh CIFAR OUT [TRAIN [VAL]]}
mkdir "$out"

subset() {
    for class in "$cifar/$1"/*/; do
        class=$(basename "$class")
        mkdir -p "$3/$class"
        find "$cifar/$1/$class" -type f | LC_ALL=C sort | sed -n "1,$2p" | tr '\n' '\0' |
            xargs -0 ln -s -t "$3/$class"
    done
}
subset train "${3:-400}" "$out/train"
subset test "${4:-200}" "$out/val"
