"""`python -m lsat_ray`: the same as the command `lsat-ray`."""

from lsat_ray.cli.app import main_program

if __name__ == "__main__":
    main_program()
