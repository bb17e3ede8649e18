"""The start of a child: `python -P -m gatherd_server.processes.begin FD MODULE`.

What is imported and loaded at a start stays, and the garbage collector looks at all of it again and
again: a quarter of the time. So it rests until the child is ready.
"""

import gc
import runpy
import sys

if __name__ == "__main__":
    gc.disable()
    runpy.run_module(sys.argv[2], run_name="__main__")
