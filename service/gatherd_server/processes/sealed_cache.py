"""Lets numba load kernels that were compiled beforehand, from a folder that may be read-only.

built_kernels.py names it in NUMBA_CACHE_LOCATOR_CLASSES, and numba imports it. Numba's own locator
for NUMBA_CACHE_DIR skips a folder that it can't write to.
"""

from numba.core.caching import UserProvidedCacheLocator


class SealedCache(UserProvidedCacheLocator):
    """Locates the folder NUMBA_CACHE_DIR without a test that it can be written to."""

    def ensure_cache_path(self) -> None:
        """Does nothing: the folder is only read, and a kernel that it lacks isn't kept either."""
