{{/* Ray Serve's config: the only part of the RayService that changes between releases that scale. */}}
{{- define "longtake.serve" -}}
{{- $values := .Values -}}
{{- $args := deepCopy $values.server -}}
{{- if not $values.insecure -}}
{{- $_ := set $args "tokens" (printf "/etc/longtake/tokens/%s" $values.tokens.key) -}}
{{- end -}}
{{- /* The operators' token goes from cluster to cluster in the clear, and not out of Kubernetes. */ -}}
{{- if or $values.insecure $values.tokens.operatorKey -}}
{{- $_ := set $args "insecure" true -}}
{{- end -}}
{{- with $values.tokens.operatorKey -}}
{{- $_ := set $args "operator_token" (printf "/etc/longtake/tokens/%s" .) -}}
{{- $_ := set $args "public_address" (printf "%s:9000" (include "longtake.fullname" $)) -}}
{{- end -}}
{{- $_ := set $args "recordings" "/recordings" -}}
{{- if include "longtake.weightsClaim" . -}}
{{- $_ := set $args "models_dir" "/models" -}}
{{- end -}}
proxy_location: EveryNode
http_options:
  host: 0.0.0.0
  port: 8000
grpc_options:
  port: 9000
  grpc_servicer_functions:
  - serving.deployments.grpc_handlers.add_sessions
  - serving.deployments.grpc_handlers.add_health
logging_config:
  encoding: JSON
  enable_access_log: false
applications:
- name: longtake
  import_path: serving.deployments.cluster_app:application
  route_prefix: /
  args:
    {{- toYaml $args | nindent 4 }}
  deployments:
  - name: SessionManager
    num_replicas: {{ $values.replicas.managers }}
    graceful_shutdown_timeout_s: {{ $values.shutdown.managerSeconds }}
    ray_actor_options: {num_cpus: 0.5, resources: {front: 1}}
  {{- include "longtake.deployment" (list . "Denoiser" "denoiser" "denoisers" $values.server.device) | nindent 2 }}
  {{- if include "longtake.separate" . }}
  {{- include "longtake.deployment" (list . "VideoDecoder" "decoder" "decoders" $values.server.device) | nindent 2 }}
  {{- include "longtake.deployment" (list . "TextEncoder" "text" "textEncoders" (include "longtake.textDevice" .)) | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* A deployment that has pods of its own: the root, its name, its pods, what its replicas are called, device. */}}
{{- define "longtake.deployment" -}}
{{- $root := index . 0 -}}
{{- $kind := index . 2 -}}
- name: {{ index . 1 }}
  {{- if $root.Values.autoscaling.enabled }}
  num_replicas: auto
  autoscaling_config: {{- include "longtake.autoscaling" (list $root (index . 3)) | nindent 4 }}
  {{- else }}
  num_replicas: {{ get $root.Values.replicas (index . 3) }}
  {{- end }}
  graceful_shutdown_timeout_s: {{ $root.Values.shutdown.replicaSeconds }}
  ray_actor_options: {num_cpus: 0.5, num_gpus: {{ ternary 1 0 (eq (index . 4) "cuda") }}, resources: { {{- $kind }}: 1}}
{{- end -}}

{{/* How a deployment is scaled: the root, and what its replicas are called. */}}
{{- define "longtake.autoscaling" -}}
{{- $settings := (index . 0).Values.autoscaling -}}
{{- $bounds := get $settings (index . 1) -}}
min_replicas: {{ $bounds.min }}
max_replicas: {{ $bounds.max }}
upscale_delay_s: {{ $settings.upscaleSeconds }}
downscale_delay_s: {{ $settings.downscaleSeconds }}
{{- /* By the first, which is 10 seconds unless it is said, replicas report, whatever variable is set. What they
reported is known for the second: the last report counts, and one that stands still for some seconds is not empty. */}}
metrics_interval_s: 1
look_back_period_s: 10
policy: {policy_function: "serving.deployments.scaling.by_slots:by_slots"}
{{- end -}}
