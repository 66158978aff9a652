"""``python -m agent``: run the node daemon."""

import os
import sys

# gRPC's fork handlers are for processes that go on using it after a fork; this one only executes others.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from agent.daemon import main  # gRPC reads the variable when it is imported

sys.exit(main())
