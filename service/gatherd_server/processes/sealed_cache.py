"""Where numba looks for kernels that were compiled beforehand, in a folder that may be read-only.

Named in NUMBA_CACHE_LOCATOR_CLASSES by processes/built_kernels.py, and imported by numba. Its own
locator for NUMBA_CACHE_DIR passes over a folder that it can't write to.
"""

from numba.core.caching import UserProvidedCacheLocator


class SealedCache(UserProvidedCacheLocator):
    """The folder NUMBA_CACHE_DIR as it is."""

    def ensure_cache_path(self) -> None:
        """Nothing: it is read, and a kernel that isn't in it isn't kept either."""
