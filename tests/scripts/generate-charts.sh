#!/usr/bin/env bash
# Writes the files of the charts that are copies of others, since a chart can not reach beyond its own folder:
#   charts/modelprofile-crds/templates/modelprofiles.modelprofile.dev.yaml   of crds/
#   charts/modelprofile-operator/files/{dashboard.json,alerts.yaml}          of deploy/dashboards/
# With a folder as argument they are written below it instead, for a comparison.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/scripts/lib.sh
crd=crds/modelprofiles.modelprofile.dev.yaml
charts="${1:-charts}"

# Helm would read braces as its own. There are none today; a default or a description that brings some needs quoting here.
! grep -n '{{' "$crd" >&2 || die "the lines above of $crd hold {{, which Helm would take for a template: quote them in $0"

template="$charts/modelprofile-crds/templates/modelprofiles.modelprofile.dev.yaml"
mkdir -p "$(dirname "$template")" "$charts/modelprofile-operator/files"
awk '
  NR == 1 { print "{{- /* Generated from '"$crd"'. To regenerate: tests/scripts/generate-charts.sh */ -}}"; next }
  { print }
  # A template, not a file of crds/: those Helm never upgrades. What Helm may upgrade it may delete, with every ModelProfile of
  # the cluster; the policy keeps it.
  !done && /^  name: / {
    print "  labels:"
    print "    app.kubernetes.io/name: modelprofile-crds"
    print "    app.kubernetes.io/instance: {{ .Release.Name }}"
    print "    app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}"
    print "    app.kubernetes.io/managed-by: {{ .Release.Service }}"
    print "    helm.sh/chart: modelprofile-crds-{{ .Chart.Version | replace \"+\" \"_\" }}"
    print "  {{- if .Values.keep }}"
    print "  annotations:"
    print "    helm.sh/resource-policy: keep"
    print "  {{- end }}"
    done = 1
  }' "$crd" >"$template"
cp deploy/dashboards/modelprofile.json "$charts/modelprofile-operator/files/dashboard.json"
cp deploy/dashboards/alerts.yaml "$charts/modelprofile-operator/files/alerts.yaml"
