"""What can go wrong in serving.

ServingError
`-- DownloadError   weights that cannot be downloaded, or that are not what was downloaded
"""

from __future__ import annotations


class ServingError(Exception):
    """Base of everything that serving raises on purpose."""


class DownloadError(ServingError):
    """Weights that cannot be downloaded or checked. The message says what to do about it."""
