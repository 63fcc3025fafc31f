#!/usr/bin/env bash
# Prints docs/reference.md: what the program says of each of its commands and their flags.
#
#   scripts/reference.sh target/debug/vitfreeze > docs/reference.md
#
# CI compares the two, so the page is never stale.
set -euo pipefail
vitfreeze=${1:?usage: reference.sh VITFREEZE}

# Names under "Commands:", which clap lists between two empty lines.
commands() { "$vitfreeze" "$@" --help | awk '/^Commands:/ {on = 1; next} on && /^$/ {exit} on && $1 != "help" && /^  [a-z]/ {print $1}'; }
page() {
  printf '\n## vitfreeze %s\n\n```text\n' "$*"
  "$vitfreeze" "$@" --help | sed 's/[[:space:]]*$//'
  printf '```\n'
}

cat <<'INTRO'
# Every command and flag

This page is what `vitfreeze COMMAND --help` prints, for each command (made by `scripts/reference.sh`, compared by CI). Keys of a
configuration file are the flags of its command without the dashes in front: `--batch-size 64` is `batch-size = 64`.

```text
INTRO
"$vitfreeze" --help | sed 's/[[:space:]]*$//'
printf '```\n'
for command in $(commands); do
  page "$command"
  for inner in $(commands "$command"); do
    page "$command" "$inner"
  done
done
