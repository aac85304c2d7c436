{{- define "longtake.name" -}}
{{- default .Chart.Name .Values.nameOverride -}}
{{- end -}}

{{/* The RayService's name, from which KubeRay makes others, so it has a limit. */}}
{{- define "longtake.fullname" -}}
{{- $name := include "longtake.name" . -}}
{{- $full := .Values.fullnameOverride | default (ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name)) -}}
{{- if gt (len $full) 47 -}}
{{- fail (printf "the name %q has %d characters; KubeRay takes 47 at most: set fullnameOverride" $full (len $full)) -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $full) -}}
{{- fail (printf "the name %q has to begin with a letter, and have letters, digits and dashes only: set fullnameOverride" $full) -}}
{{- end -}}
{{- $full -}}
{{- end -}}

{{- define "longtake.selector" -}}
app.kubernetes.io/name: {{ include "longtake.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "longtake.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{ include "longtake.selector" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "longtake.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "longtake.separate" -}}
{{- if eq (.Values.server.stages | default "shared") "separate" }}true{{ end -}}
{{- end -}}

{{/* The names of the claims, or nothing. */}}
{{- define "longtake.weightsClaim" -}}
{{- .Values.weights.existingClaim | default (ternary (printf "%s-weights" (include "longtake.fullname" .)) "" .Values.weights.create) -}}
{{- end -}}

{{- define "longtake.recordingsClaim" -}}
{{- .Values.recordings.existingClaim | default (ternary (printf "%s-recordings" (include "longtake.fullname" .)) "" .Values.recordings.create) -}}
{{- end -}}

{{/* The devices that stages run on. */}}
{{- define "longtake.textDevice" -}}
{{- .Values.server.text_device | default .Values.server.device -}}
{{- end -}}

{{- define "longtake.frontPods" -}}
{{- ceil (divf .Values.replicas.managers .Values.pods.front.managersPerPod) | int -}}
{{- end -}}

{{/* How many pods there are at first: the root, and what their replicas are called. */}}
{{- define "longtake.pods" -}}
{{- $values := (index . 0).Values -}}
{{- if $values.autoscaling.enabled -}}
{{- (get $values.autoscaling (index . 1)).min -}}
{{- else -}}
{{- get $values.replicas (index . 1) -}}
{{- end -}}
{{- end -}}

{{/* What contradicts what. A JSON schema cannot say it. */}}
{{- define "longtake.check" -}}
{{- $values := .Values -}}
{{- if and (not $values.tokens.existingSecret) (not $values.insecure) -}}
{{- fail "without tokens everybody who reaches the server may use it: set tokens.existingSecret, or insecure: true" -}}
{{- end -}}
{{- if and $values.tokens.existingSecret $values.insecure (not $values.tokens.operatorKey) -}}
{{- fail "there are tokens, and insecure is true: set one of them, or tokens.operatorKey for a Secret that has no other token" -}}
{{- end -}}
{{- if and $values.tokens.operatorKey (not $values.tokens.existingSecret) -}}
{{- fail (printf "tokens.operatorKey is %q and tokens.existingSecret is empty: name the Secret that has this key" $values.tokens.operatorKey) -}}
{{- end -}}
{{- $onGpu := dict "denoiser" $values.server.device -}}
{{- if include "longtake.separate" . -}}
{{- $_ := set $onGpu "decoder" $values.server.device -}}
{{- $_ := set $onGpu "text" (include "longtake.textDevice" .) -}}
{{- if not $values.server.decoder_slots -}}
{{- fail "server.decoder_slots is missing: how many sessions a decoder may have, twice the slots of the denoisers that it serves" -}}
{{- end -}}
{{- end -}}
{{- range $kind, $device := $onGpu -}}
{{- $gpus := int (get $values.pods $kind).gpus -}}
{{- if and (eq $device "cuda") (eq $gpus 0) -}}
{{- fail (printf "the device is cuda and pods.%s.gpus is 0; set it to 1" $kind) -}}
{{- end -}}
{{- if and (eq $device "cpu") (gt $gpus 0) -}}
{{- fail (printf "pods.%s.gpus is %d and the device is cpu, which would leave them idle: set server.device to cuda, or gpus to 0" $kind $gpus) -}}
{{- end -}}
{{- end -}}
{{- range $kind, $pod := $values.pods -}}
{{- if lt (include "longtake.objectStore" $pod | float64) 1e8 -}}
{{- fail (printf "pods.%s.sharedMemory is %s, three quarters of which are too little for Ray's objects: set 256Mi or more" $kind $pod.sharedMemory) -}}
{{- end -}}
{{- end -}}
{{- if and (ne $values.server.model "pocket") (not (include "longtake.weightsClaim" .)) -}}
{{- fail (printf "the model %s needs weights: set weights.existingClaim, or weights.create and weights.download.enabled" $values.server.model) -}}
{{- end -}}
{{- if and $values.weights.download.enabled (not $values.weights.download.model) -}}
{{- fail "weights.download.enabled is true and weights.download.model is empty: name the model" -}}
{{- end -}}
{{- if and $values.weights.download.enabled (not (include "longtake.weightsClaim" .)) -}}
{{- fail "weights.download.enabled is true and there is no volume for them: set weights.create or weights.existingClaim" -}}
{{- end -}}
{{- if and (gt (int (include "longtake.frontPods" .)) 1) (not (include "longtake.recordingsClaim" .)) -}}
{{- fail (printf "%d managers are in %s pods, which would each have recordings of their own: set recordings.create, or recordings.existingClaim" (int $values.replicas.managers) (include "longtake.frontPods" .)) -}}
{{- end -}}
{{- $times := $values.shutdown -}}
{{- if lt (int $times.managerSeconds) (add $times.replicaSeconds 30 | int) -}}
{{- fail (printf "shutdown.managerSeconds is %d, and has to be 30 more than the %d of shutdown.replicaSeconds: both copies of a session would leave at once" (int $times.managerSeconds) (int $times.replicaSeconds)) -}}
{{- end -}}
{{- $longest := max (int $times.replicaSeconds) (int $times.managerSeconds) -}}
{{- if lt (int $times.drainSeconds) (add $longest 60 | int) -}}
{{- fail (printf "shutdown.drainSeconds is %d; a node that leaves needs 60 more than the %d seconds of its replicas, for others to start" (int $times.drainSeconds) $longest) -}}
{{- end -}}
{{- if lt (int $times.podSeconds) (add $times.drainSeconds 30 | int) -}}
{{- fail (printf "shutdown.podSeconds is %d, and has to be 30 more than the %d of shutdown.drainSeconds: a pod would be killed before it is empty" (int $times.podSeconds) (int $times.drainSeconds)) -}}
{{- end -}}
{{- $scaling := $values.autoscaling -}}
{{- range $name := list "denoisers" "decoders" "textEncoders" -}}
{{- $bounds := get $scaling $name -}}
{{- $fixed := int (get $values.replicas $name) -}}
{{- if and $scaling.enabled (ne $fixed 1) -}}
{{- fail (printf "replicas.%s is %d, and autoscaling is enabled: set autoscaling.%s.min and max in its place" $name $fixed $name) -}}
{{- end -}}
{{- if gt (int $bounds.min) (int $bounds.max) -}}
{{- fail (printf "autoscaling.%s.min is %d, more than the %d of autoscaling.%s.max" $name (int $bounds.min) (int $bounds.max) $name) -}}
{{- end -}}
{{- end -}}
{{- if and $scaling.enabled (include "longtake.separate" .) -}}
{{- $sessions := mul $scaling.denoisers.max ($values.server.slots | default 2) | int -}}
{{- $decoded := mul $scaling.decoders.max $values.server.decoder_slots | int -}}
{{- if lt $decoded $sessions -}}
{{- fail (printf "denoisers may come to have %d sessions, and decoders %d: raise autoscaling.decoders.max or server.decoder_slots" $sessions $decoded) -}}
{{- end -}}
{{- end -}}
{{- if and $values.routes.enabled (not $values.routes.parentRefs) -}}
{{- fail "routes.enabled is true and routes.parentRefs is empty: name the Gateway" -}}
{{- end -}}
{{- end -}}
