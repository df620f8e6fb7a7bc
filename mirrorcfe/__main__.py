"The command line as `python -m mirrorcfe`, which launchers start: `accelerate launch -m mirrorcfe explain FOLDER`."
import sys
from mirrorcfe.cli import main

if __name__ == '__main__': sys.exit(main())
