"""`python -m lm_retrieval` is `lmr`."""

from lm_retrieval.cli import main

if __name__ == "__main__":
    main()
