"""`t2i data ...` in a process that is killed while it stores rows beside a packed set:
`python -m tests.cli.killed ROW WORDS...`.
"""

import os
import signal
import sys

from t2i_jax.cli import main as cli
from t2i_jax.data.arrayrecord import ShardWriter

if __name__ == "__main__":
    last, write, seen = int(sys.argv[1]), ShardWriter.write, []

    def killing(self, row):
        """As it was, up to the row of which nothing more comes."""
        write(self, row)
        seen.append(row)
        if len(seen) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    ShardWriter.write = killing
    sys.argv = ["t2i", "data", *sys.argv[2:]]
    cli.main()
