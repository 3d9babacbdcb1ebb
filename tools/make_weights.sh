#!/usr/bin/env bash
# Train and publish the weights that ship with the package, from the recipes for two CPU cores.
#
# Usage: make_weights.sh NAME ...     in a folder that holds the sets, from which the cards name them:
#   cifar10.npz, mnist.npz, fashion.npz   images of the published sets, with their labels
#   galaxies/{train,test}/{other,spiral}/ 32 x 32 pixels of SDSS galaxies
#
# Budgets are of processor time of one thread. The folders weights/NAME go to src/mixerflow/weights/.
set -euo pipefail
shared=(--train.clock cpu --threads 1)

make_one() { # NAME DATA RECIPE FLAGS...
    local name=$1 data=$2
    shift 2
    mixerflow train "$@" --data "$data" "${shared[@]}" --out "runs/$name"
    mixerflow publish "runs/$name" --to "weights/$name" --inside "$data" --threads 1
}

flip=--train.augmentation.flip
classes=(--model.classes auto)
few=(--train.evaluate-images 1000)
for name in "$@"; do
    case $name in
    cifar10)
        make_one "$name" cifar10:cifar10.npz fast-cifar10 "${classes[@]}" $flip --minutes 60 \
            --train.evaluate-images 2000 ;;
    galaxies) make_one "$name" galaxies fast-galaxy32 "${classes[@]}" $flip --minutes 12 ;;
    digits-affine) make_one "$name" mnist:mnist.npz fast-cifar10 "${classes[@]}" --minutes 20 "${few[@]}" ;;
    digits) make_one "$name" mnist:mnist.npz fast-mnist "${classes[@]}" --minutes 20 "${few[@]}" ;;
    clothes-affine)
        make_one "$name" fashion-mnist:fashion.npz fast-cifar10 "${classes[@]}" $flip --minutes 25 "${few[@]}" ;;
    clothes) make_one "$name" fashion-mnist:fashion.npz fast-clothes $flip --minutes 25 "${few[@]}" ;;
    *) echo "no such weights: $name" >&2; exit 2 ;;
    esac
done
