"""What must be set before the tests: threads, which torch reads when it is imported, and Ctrl-C."""

import os
import signal

if "PYTEST_XDIST_WORKER" in os.environ:  # several test processes on one machine take a thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell starts what runs in the background with Ctrl-C ignored, and the tests of Ctrl-C would wait in vain.
signal.signal(signal.SIGINT, signal.default_int_handler)
