"""Every error class of gatherd's: other tests' own, which are subclasses too, aren't among them."""

from typing import Final

import gatherd_server.errors
from gatherd import errors

_MODULES: Final = (errors.__name__, gatherd_server.errors.__name__)
ERROR_CLASSES: Final = [cls for cls in errors.subclasses() if cls.__module__ in _MODULES]
CLIENT_CLASSES: Final = [cls for cls in ERROR_CLASSES if cls.__module__ == errors.__name__]
