"""``python -m redrel_vlmeval`` is the ``redrel`` command."""

from redrel_vlmeval.cli import main

if __name__ == "__main__":
    main()
