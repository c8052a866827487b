"""Tests run one thread a process: workers share the cores, and results do not depend on how many there are."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
