"""`python -m darl_rerank.cli` is the command `darl-rerank`."""

from . import main

if __name__ == "__main__":
    main()
