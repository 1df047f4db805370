#!/usr/bin/env bash
# The charts and what goes with them: generated copies, deploy/install.yaml, helm lint, a snapshot of what each file of
# tests/charts/values renders to, what the schema of the values refuses, and the rules of tests/charts/check.py.
# With --update the generated files, deploy/install.yaml and the snapshots are written anew; look at the difference before you
# commit it. HELM names another helm than the one of the cluster tools.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/scripts/lib.sh
update=
case "${1:-}" in
  --update) update=1 ;;
  "") ;;
  *) die "unknown argument $1; the only one is --update" ;;
esac

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
need_helm "$scratch"
failures=0
fail() { printf 'error: %s\n' "$*" >&2; failures=$((failures + 1)); }
regenerate="to write it anew: tests/scripts/test-charts.sh --update"

# same FILE NEW: whether the committed file is what would be written now.
same() {
  if [ -n "$update" ]; then
    mkdir -p "$(dirname "$1")"
    cp "$2" "$1"
  elif ! diff -u "$1" "$2" >&2; then
    fail "$1 is not what it would be made of now; $regenerate"
  fi
}

# Copies first: the rest is rendered from them.
tests/scripts/generate-charts.sh "$scratch/generated"
while IFS= read -r file; do
  same "charts/$file" "$scratch/generated/$file"
done < <(cd "$scratch/generated" && find . -type f | sed 's#^\./##' | sort)
packed_charts "$scratch"

HELM="$helm" tests/scripts/render-install.sh "$scratch/install.yaml"
same deploy/install.yaml "$scratch/install.yaml"

chart="$scratch/charts/modelprofile-operator"
"$helm" lint --strict --quiet --kube-version "$kube_version" "$scratch/charts/modelprofile-crds" >&2 || fail "helm lint refuses modelprofile-crds"
snapshots=0
for values in tests/charts/values/*.yaml; do
  name="$(basename "$values" .yaml)"
  "$helm" lint --strict --quiet --kube-version "$kube_version" --values "$values" "$chart" >&2 || fail "helm lint refuses the chart with $values"
  if "$helm" template modelprofile "$chart" --namespace modelprofile-system --kube-version "$kube_version" --values "$values" >"$scratch/$name.yaml"; then
    same "tests/charts/snapshots/$name.yaml" "$scratch/$name.yaml"
  else
    fail "the chart does not render with $values"
  fi
  snapshots=$((snapshots + 1))
done
for snapshot in tests/charts/snapshots/*.yaml; do
  [ -e "tests/charts/values/$(basename "$snapshot")" ] || fail "$snapshot is of no file of tests/charts/values; delete it"
done

python="$(venv charts tests/charts/requirements.txt)"
"$python" tests/charts/check.py --helm "$helm" --chart "$chart" --kube-version "$kube_version" || failures=$((failures + 1))
"$python" tests/charts/images.py || failures=$((failures + 1))

[ "$failures" = 0 ] || die "the charts have $failures problems, named above"
say "charts: $snapshots snapshots and deploy/install.yaml are as they were, and every rule holds"
