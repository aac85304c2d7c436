"""The container image: its Dockerfile, held against what a pod of KubeRay's needs, and built and run for once."""
