"""The entry: ``accelerate launch kdstream/train.py [RECIPE] [key=value ...]``: the verb ``kdstream train``."""

import importlib
import os
import sys

if __name__ == "__main__":
    # Run as a script, Python puts this folder first. The clone's root takes its place, and the working folder follows,
    # so that recipes find the user's own modules.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.path.insert(1, os.getcwd())
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Before torch is imported: its C++ code advises every process against find_unused_parameters, which stays.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from kdstream.cli.frame import imported, quiet_imports
    from kdstream.training.stop import end_with_launcher

    quiet_imports()
    end_with_launcher()

    from kdstream.cli.train import leave, main

    if not {"-h", "--help"} & set(sys.argv):
        importlib.import_module("kdstream.training.job")  # what takes long to load
    imported()
    leave(main())
