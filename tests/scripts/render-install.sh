#!/usr/bin/env bash
# Writes deploy/install.yaml: the operator with the chart's defaults, for kubectl apply. With a path as argument it goes there
# instead, for a comparison.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/scripts/lib.sh
output="${1:-deploy/install.yaml}"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
need_helm "$scratch"
packed_charts "$scratch"

{
  cat <<'HEAD'
# The operator of ModelProfiles with its defaults: kubectl apply --server-side -f deploy/install.yaml
# Images are named without a registry: docs/operating.md says how to put yours in front, and what can be set.
# Rendered from charts/modelprofile-operator. To render again: tests/scripts/render-install.sh
apiVersion: v1
kind: Namespace
metadata:
  name: modelprofile-system
  labels:
    app.kubernetes.io/part-of: modelprofile
    pod-security.kubernetes.io/enforce: restricted
    pod-security.kubernetes.io/warn: restricted
HEAD
  # No keep policy and no labels of Helm's: nothing here belongs to a release.
  "$helm" template modelprofile "$scratch/charts/modelprofile-operator" --namespace modelprofile-system --kube-version "$kube_version" \
    --skip-tests --set crds.keep=false |
    grep -vE '^ +(helm\.sh/chart: |app\.kubernetes\.io/managed-by: Helm$)'
} >"$scratch/install.yaml"
mv "$scratch/install.yaml" "$output"
