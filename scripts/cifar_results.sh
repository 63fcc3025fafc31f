#!/usr/bin/env bash
# The experiment of docs/results: does pretraining pay, and what does freezing cost?
#
#   bash scripts/cifar_results.sh CIFAR OUT
#
# CIFAR holds train/<class>/<image> and test/<class>/<image> of CIFAR-10. Everything is written below OUT, which must not
# exist. A ViT of 12 blocks of width 192 on 32 px with patch 4 is pretrained without labels, with and without freezing;
# then both are fine-tuned, probed and asked for their neighbours on 500 labelled images a class, beside one trained from
# scratch for as long; accuracy is that on 200 test images a class. Products take bf16 where the processor has a unit for
# it: 21 minutes on two cores of a Zen 4 (docs/results), longer in f32. Every number is below, in configs/tiny-cifar.toml or in
# configs/finetune-tiny-cifar.toml; the seed is 0 everywhere.
set -euo pipefail

cifar=$(realpath "${1:?usage: cifar_results.sh CIFAR OUT}")
out=${2:?usage: cifar_results.sh CIFAR OUT}
repo=$(cd "$(dirname "$0")/.." && pwd)
vitfreeze=${VITFREEZE:-$repo/target/release/vitfreeze}
mkdir "$out"
out=$(realpath "$out")
started=$SECONDS

source "$(dirname "${BASH_SOURCE[0]}")/cifar_links.sh"
subset "$cifar" train 2000 "$out/unlabelled/train"
subset "$cifar" train 500 "$out/labelled/train"
subset "$cifar" test 200 "$out/labelled/val"

pretrain() {
    "$vitfreeze" pretrain --config "$repo/configs/tiny-cifar.toml" --data "$out/unlabelled" \
        --epochs 3 --warmup-epochs 1 --dtype bf16 --seed 0 "$@"
}
finetune() {
    "$vitfreeze" finetune --config "$repo/configs/finetune-tiny-cifar.toml" --data "$out/labelled" --dtype bf16 --seed 0 "$@"
}
linprobe() {
    "$vitfreeze" linprobe --data "$out/labelled" --dtype bf16 --cached --batch-size 256 --accum 1 --lr 6.4 --seed 0 "$@"
}
knn() {
    "$vitfreeze" knn --data "$out/labelled" --dtype bf16 "$@"
}

pretrain --freeze none --out "$out/pretrain-unfrozen"
pretrain --freeze cubic --t0 0.8 --out "$out/pretrain-frozen"
for run in unfrozen frozen; do
    encoder=$out/pretrain-$run
    finetune --checkpoint "$encoder" --out "$out/finetune-$run"
    linprobe --checkpoint "$encoder" --out "$out/linprobe-$run"
    knn --checkpoint "$encoder" --out "$out/knn-$run"
done
finetune --model vit-tiny --image-size 32 --patch-size 4 --layer-decay 1 --out "$out/finetune-scratch"
"$vitfreeze" compare "$out"/pretrain-* "$out"/finetune-* "$out"/linprobe-* "$out"/knn-*
echo "all in $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s"
