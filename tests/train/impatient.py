"""For torchrun: impatient.py SECONDS RECIPE trains, and waits for a silent process only so long."""

import sys

if __name__ == "__main__":
    from linearard.cli.main import main
    from linearard.train import peers

    peers.PATIENCE_SECONDS, peers.BEAT_SECONDS = float(sys.argv[1]), 0.5
    sys.exit(main(["train", sys.argv[2], "--quiet"]))
