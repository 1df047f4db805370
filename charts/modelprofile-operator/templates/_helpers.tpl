{{/* The one name of all objects. Not the release's: the NetworkPolicies of workers, the Lease and the Secret refer to it. */}}
{{- define "modelprofile.name" -}}
modelprofile-operator
{{- end }}

{{/* Labels by which the operator's pods are found; they can not change between versions. */}}
{{- define "modelprofile.selector" -}}
app.kubernetes.io/name: modelprofile-operator
app.kubernetes.io/component: operator
{{- end }}

{{/* Labels of every object. */}}
{{- define "modelprofile.labels" -}}
{{ include "modelprofile.common" . }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "modelprofile.common" -}}
app.kubernetes.io/name: modelprofile-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: modelprofile
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* The reference of an image. Takes a list: the image's values, and the root. A digest says more than a tag. */}}
{{- define "modelprofile.image" -}}
{{- $image := index . 0 -}}
{{- $root := index . 1 -}}
{{- with $image.registry }}{{ . | trimSuffix "/" }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest -}}
@{{ $image.digest }}
{{- else -}}
:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "modelprofile.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "modelprofile.name" .) }}
{{- end }}

{{- define "modelprofile.priorityClass" -}}
{{ .Values.priorityClass.name | default (include "modelprofile.name" .) }}
{{- end }}

{{/* What the Pod Security level `restricted` asks of a pod. */}}
{{- define "modelprofile.podSecurity" -}}
runAsNonRoot: true
{{- with .Values.operator.runAsUser }}
runAsUser: {{ . | int64 }}
{{- end }}
{{- with .Values.operator.runAsGroup }}
runAsGroup: {{ . | int64 }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* And of its containers. */}}
{{- define "modelprofile.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}
