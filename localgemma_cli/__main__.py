"""Where the program starts; so small that Ctrl-C has an answer from the first moment."""

import sys


def main() -> None:
    try:
        from localgemma_cli.cli import main as run
    except KeyboardInterrupt:  # while the imports ran; there is nobody yet to tell it better
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
