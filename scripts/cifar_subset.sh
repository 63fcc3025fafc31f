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

source "$(dirname "${BASH_SOURCE[0]}")/cifar_links.sh"
subset "$cifar" train "${3:-400}" "$out/train"
subset "$cifar" test "${4:-200}" "$out/val"
