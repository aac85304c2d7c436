{{/* The pod template of a group: the root, the group's name, and its values. */}}
{{- define "longtake.pod" -}}
{{- $root := index . 0 -}}
{{- $kind := index . 1 -}}
{{- $pod := index . 2 -}}
metadata:
  labels:
    {{- include "longtake.selector" $root | nindent 4 }}
    app.kubernetes.io/component: {{ $kind }}
    {{- with $pod.labels }}{{ toYaml . | nindent 4 }}{{ end }}
  {{- with $pod.annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  # Variables of other Services could be taken for settings.
  enableServiceLinks: false
  # Of the head the autoscaler needs it, under an account that KubeRay makes unless there is one.
  automountServiceAccountToken: {{ and (eq $kind "head") $root.Values.autoscaling.enabled }}
  terminationGracePeriodSeconds: {{ $root.Values.shutdown.podSeconds }}
  {{- with $root.Values.serviceAccountName }}
  serviceAccountName: {{ . }}
  {{- end }}
  {{- include "longtake.podSecurity" $root | nindent 2 }}
  {{- with $pod.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $pod.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $pod.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $pod.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $pod.topologySpreadConstraints }}
  topologySpreadConstraints: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if include "longtake.weightsClaim" $root }}
  initContainers:
  - name: wait-for-weights
    image: {{ include "longtake.image" $root }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    {{- include "longtake.containerSecurity" $root | nindent 4 }}
    # What is missing, and where, is in its log.
    command:
    - bash
    - -c
    - until longtake models "$0" --models-dir /models --codec "$1" --require; do sleep 10; done
    - {{ $root.Values.server.model | quote }}
    - {{ $root.Values.server.codec | default "own" | quote }}
    resources: {requests: {cpu: 100m, memory: 1Gi}, limits: {cpu: "1", memory: 2Gi}}
    volumeMounts:
    - {name: weights, mountPath: /models, readOnly: true}
  {{- end }}
  containers:
  - name: {{ ternary "ray-head" "ray-worker" (eq $kind "head") }}
    image: {{ include "longtake.image" $root }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    {{- include "longtake.containerSecurity" $root | nindent 4 }}
    env:
    {{- include "longtake.environment" $root | nindent 4 }}
    {{- with $pod.env }}{{ toYaml . | nindent 4 }}{{ end }}
    ports:
    {{- if eq $kind "head" }}
    - {name: gcs, containerPort: 6379}
    - {name: dashboard, containerPort: 8265}
    - {name: client, containerPort: 10001}
    {{- end }}
    # KubeRay reads the Service's ports from the head's, though no client is led there.
    - {name: serve, containerPort: 8000}
    - {name: serve-grpc, containerPort: 9000}
    - {name: metrics, containerPort: 8080}
    resources: {{- include "longtake.resources" (list $root $pod) | nindent 6 }}
    volumeMounts:
    - {name: shared-memory, mountPath: /dev/shm}
    - {name: ray, mountPath: /tmp/ray}
    - {name: recordings, mountPath: /recordings}
    {{- if $root.Values.tokens.existingSecret }}
    - {name: tokens, mountPath: /etc/longtake/tokens, readOnly: true}
    {{- end }}
    {{- if include "longtake.weightsClaim" $root }}
    - {name: weights, mountPath: /models, readOnly: true}
    {{- end }}
  volumes:
  - name: shared-memory
    emptyDir: {medium: Memory, sizeLimit: {{ $pod.sharedMemory }}}
  - name: ray
    emptyDir: {}
  - name: recordings
    {{- if and (eq $kind "front") (include "longtake.recordingsClaim" $root) }}
    persistentVolumeClaim: {claimName: {{ include "longtake.recordingsClaim" $root }}}
    {{- else }}
    emptyDir: {}
    {{- end }}
  {{- with $root.Values.tokens.existingSecret }}
  - name: tokens
    secret: {secretName: {{ . }}}
  {{- end }}
  {{- with include "longtake.weightsClaim" $root }}
  - name: weights
    persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}
  {{- end }}
{{- end -}}

{{/* Who a pod is: the image's user, without rights that it does not need. */}}
{{- define "longtake.podSecurity" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 1000
  runAsGroup: 1000
  fsGroup: 1000
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "longtake.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
{{- end -}}

{{/* What Ray's and Serve's own processes read, as on one machine: serving/launch/ray_environment.py. A pod's ports
are its own: Serve may share them, with which a proxy that is there again has them at once. */}}
{{- define "longtake.environment" -}}
- {name: RAY_worker_niceness, value: "0"}
- {name: RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S, value: "60"}
- {name: RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S, value: "0.25"}
- {name: RAY_SERVE_PROXY_USE_GRPC, value: "1"}
- {name: RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH, value: "2147483647"}
- {name: RAY_SERVE_GRPC_MAX_MESSAGE_SIZE, value: "268435456"}
- {name: RAY_SERVE_QUEUE_LENGTH_CACHE_TIMEOUT_S, value: "1"}
- {name: WEBSOCKETS_MAX_LINE_LENGTH, value: "1048576"}
- {name: RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, value: "serving.deployments.http_handlers:middlewares"}
- {name: RAY_ROTATION_MAX_BYTES, value: "67108864"}
- {name: RAY_ROTATION_BACKUP_COUNT, value: "4"}
- {name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S, value: {{ .Values.shutdown.drainSeconds | quote }}}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
{{- if eq .Values.proxy "haproxy" }}
- {name: RAY_SERVE_ENABLE_HA_PROXY, value: "1"}
# It would end streams that are quiet for an hour, and all of them 2 minutes after managers have come or gone.
- {name: RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S, value: "86400"}
- {name: RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S, value: "86400"}
{{- end }}
{{- end -}}

{{/* The resources of a container: the root, and the pod's values. */}}
{{- define "longtake.resources" -}}
{{- $root := index . 0 -}}
{{- $pod := index . 1 -}}
{{- $resources := deepCopy $pod.resources -}}
{{- if gt (int $pod.gpus) 0 -}}
{{- $limits := set (deepCopy ($resources.limits | default dict)) $root.Values.gpuResource (int $pod.gpus) -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{- /*
Bytes of a pod's object store: three quarters of its shared memory. Left to itself Ray takes three tenths of the pod's memory,
and where that is more than it finds in /dev/shm it keeps objects on the disk.
*/}}
{{- define "longtake.objectStore" -}}
{{- $units := dict "" 1 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 0x1p10 "Mi" 0x1p20 "Gi" 0x1p30 "Ti" 0x1p40 -}}
{{- $amount := regexFind "^[0-9.]+" .sharedMemory | float64 -}}
{{- mulf $amount (get $units (regexFind "[A-Za-z]*$" .sharedMemory)) 0.75 | printf "%.0f" -}}
{{- end }}
