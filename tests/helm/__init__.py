"""The Helm chart: rendered, held against schemas, and its Serve config served by a real Ray cluster."""
