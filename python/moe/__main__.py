"""The program of the README: python -m moe compare, python -m moe verify FILE, …"""

import sys

from moe._moe import run_program


def main():
    sys.exit(run_program(sys.argv[1:]))


if __name__ == "__main__":
    main()
