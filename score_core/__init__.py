"""Score for Python: verified, resumable, parallel transfer of genomics files through time-limited pre-signed URLs."""

__version__ = "0.1.0"
