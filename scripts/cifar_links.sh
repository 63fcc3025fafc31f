# To be sourced by scripts that train on a part of CIFAR-10.

# subset CIFAR SPLIT COUNT OUT: links to the first images of every class, by name, into the folder OUT.
subset() {
    for class in "$1/$2"/*/; do
        class=$(basename "$class")
        mkdir -p "$4/$class"
        find "$1/$2/$class" -type f | LC_ALL=C sort | sed -n "1,$3p" | tr '\n' '\0' |
            xargs -0 ln -s -t "$4/$class"
    done
}
